"""Builds the model of a recipe."""

from itt_composer.models.configuration import IttConfig
from itt_composer.models.modeling import IttForCausalLM
from itt_composer.recipe.schema import Recipe


def model_config(recipe: Recipe) -> IttConfig:
    """Return the configuration of a recipe's model."""
    return IttConfig(**recipe.model.model_dump(), **vars(recipe.resolved_thinking()))


def build_model(recipe: Recipe) -> IttForCausalLM:
    """Build the recipe's model with random weights."""
    return IttForCausalLM(model_config(recipe))
