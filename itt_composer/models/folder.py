"""The transformers folder of a model: safetensors, config, generation config, tokenizer, card.

Training and `itt export` write it through the same function. A dense model is written as the plain
LLaMA it is, which every tool loads without this package.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import LlamaConfig, LlamaForCausalLM

from itt_composer.basics.errors import UserError
from itt_composer.basics.files import whole_folder
from itt_composer.basics.losses import perplexity
from itt_composer.models import IttForCausalLM
from itt_composer.models.folder_code import has_code, write_code
from itt_composer.models.loading import without_bars
from itt_composer.models.tokenizer_folder import copy_tokenizer
from itt_composer.recipe.llama_config import llama_fields, rope_of_version_4

WEIGHT_PATTERNS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin*")
CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [{model_type}]
---

# {name}

{kind} ([arXiv 2502.13842](https://arxiv.org/abs/2502.13842)), made with `itt_composer`.

{usage}

{facts}
"""
LOADING = """\
```python
{imports}from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("<this folder>")
```"""
IMPORTS = {"llama": "", "itt": "import itt_composer  # makes the Auto classes know ITT models\n"}
WITHOUT_PACKAGE = """

Without that package transformers 4.57 or 5.3 to 5.24 loads it by the code in this folder, which it
runs only where you say so:

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("<this folder>", trust_remote_code=True)
```"""
MODEL_KINDS = {
    "dense": "A LLaMA, the dense baseline of an Inner Thinking Transformer",
    "loop": "A Loop model: {layers} {are} applied {steps} times; the baseline of ITT",
    "itt": "An Inner Thinking Transformer: {layers} {think} up to {steps} steps",
}


@dataclass
class Training:
    """The facts of a training that a model card reports.

    Attributes:
        run_name: of the recipe.
        batches: trained on.
        tokens: trained on.
        validation_loss: nats per token after these batches, by the rule of training; None where
            it is not known.
        loss_by_threshold: likewise, by the thresholds that the model routes by from here on.
        recipe: the resolved recipe as YAML, or None where it is not known.
    """

    run_name: str
    batches: int
    tokens: int
    validation_loss: float | None
    loss_by_threshold: float | None
    recipe: str | None

    def card(self, model: IttForCausalLM | LlamaForCausalLM, with_code: bool = True) -> str:
        """Write the README.md of the trained model; see `model_card`."""
        perplexity = _perplexity(self.validation_loss)
        if self.loss_by_threshold is not None:
            causal = _perplexity(self.loss_by_threshold)
            perplexity = f"{causal} by thresholds, {perplexity} by the rule of training"
        facts = (
            "| | |\n| --- | --- |\n"
            f"| trained on | {self.tokens:,} tokens, {self.batches:,} batches |\n"
            f"| validation perplexity | {perplexity} |\n\n"
            "## Recipe\n\n"
        )
        if self.recipe is None:
            return model_card(model, self.run_name, facts + "Not known.", with_code)
        recipe = f"```yaml\n{self.recipe.rstrip()}\n```"
        return model_card(model, self.run_name, facts + recipe, with_code)


def _perplexity(loss: float | None) -> str:
    return "not known" if loss is None else f"{perplexity(loss):.2f}"


def model_card(
    model: IttForCausalLM | LlamaForCausalLM, name: str, facts: str, with_code: bool = True
) -> str:
    """Write a README.md.

    Args:
        model: as its folder holds it.
        name: of the model.
        facts: Markdown for the end.
        with_code: whether the folder holds the code of a model that needs some.
    """
    kind, model_type = MODEL_KINDS["dense"], model.config.model_type
    usage = LOADING.format(imports=IMPORTS[model_type])
    if isinstance(model, IttForCausalLM):
        config = model.config
        layers, is_one = (
            ", ".join(map(str, config.thinking_layers)),
            len(config.thinking_layers) == 1,
        )
        kind = MODEL_KINDS[config.thinking].format(
            layers=f"layer {layers}" if is_one else f"layers {layers}",
            are="is" if is_one else "are",
            think="thinks" if is_one else "think",
            steps=config.thinking_steps,
        )
        usage += WITHOUT_PACKAGE if with_code else ""
    return CARD.format(name=name, kind=kind, facts=facts, model_type=model_type, usage=usage)


def as_published(
    model: IttForCausalLM, model_type: str | None = None
) -> IttForCausalLM | LlamaForCausalLM:
    """Return the model as its folder should hold it, around the same weights.

    Args:
        model: any of ours.
        model_type: "llama" or "itt"; None means "llama" for a dense model and "itt" for others.

    Raises:
        UserError: a model that thinks cannot be a LLaMA.
    """
    is_dense = model.config.thinking == "dense"
    if model_type == "itt" or (model_type is None and not is_dense):
        return model
    if not is_dense:
        raise UserError(
            "--model-type llama is for dense models, and this one thinks: leave the option out"
        )
    with torch.device("meta"):
        llama = LlamaForCausalLM(LlamaConfig(**llama_fields(model.config.to_dict())))
    llama.load_state_dict(model.state_dict(), strict=True, assign=True)
    llama.tie_weights()  # type: ignore[operator]
    llama.generation_config = model.generation_config
    return llama


def write_model_folder(
    folder: Path,
    model: IttForCausalLM | LlamaForCausalLM,
    card: str,
    tokenizer: Path | None,
    with_code: bool = True,
) -> None:
    """Write a model so that transformers loads it, whole or not at all.

    A model trained under top-k that has thresholds routes by them from here on: so it can
    generate, and likelihoods do not see the future.

    Args:
        folder: appears, or is replaced, when everything is written.
        model: its own weights, config and generation config; see `as_published`.
        card: the README.md.
        tokenizer: folder whose tokenizer files are copied, or None.
        with_code: put the code of an ITT beside it, so that it loads without this package.

    Raises:
        UserError: the weights cannot be written.
    """
    if (
        isinstance(model, IttForCausalLM)
        and model.config.router_selection == "top_k"
        and model.has_thresholds
    ):
        model.set_router_selection("threshold")
    with whole_folder(folder) as partial:
        _save(model, partial)
        if with_code and isinstance(model, IttForCausalLM):
            write_code(partial)
        if tokenizer:
            copy_tokenizer(tokenizer, partial)
        (partial / "README.md").write_text(card, encoding="utf-8")


def replace_model(folder: Path, model: IttForCausalLM) -> None:
    """Replace the model in a folder by a changed one; the other files stay as they are.

    Raises:
        UserError: the weights cannot be written.
    """
    with whole_folder(folder) as partial:
        weights = shutil.ignore_patterns(*WEIGHT_PATTERNS)
        shutil.copytree(
            folder,
            partial,
            ignore=lambda place, names: weights(place, names) if Path(place) == folder else set(),
            dirs_exist_ok=True,
        )
        _save(model, partial)
        if has_code(folder):
            write_code(partial)


def _save(model: IttForCausalLM | LlamaForCausalLM, folder: Path) -> None:
    try:
        with without_bars():
            model.save_pretrained(folder)
    except SafetensorError as error:
        raise UserError(f"{folder} cannot be written: {error}") from None
    place = folder / "config.json"
    config = rope_of_version_4(json.loads(place.read_bytes()))
    place.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in folder.glob("*.safetensors"):  # safetensors makes them private
        file.chmod(place.stat().st_mode)


def set_document_ends(model: IttForCausalLM, bos_id: int | None, eos_id: int | None) -> None:
    """Make generation begin and end as the documents of the training rows do."""
    ends = {"bos_token_id": bos_id, "eos_token_id": eos_id}
    model.config.update(ends)
    if model.generation_config is not None:
        model.generation_config.update(**ends)
