"""Turns a LLaMA into an ITT that computes the same, to train it further.

φ_0 = 1 leaves the first pass as it is, and φ_t = 0 takes every further step's contribution away:
before the first update the model is the LLaMA, whatever its routers select. φ has a gradient from
the start, so the steps grow in from nothing.
"""

from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import GenerationConfig, PretrainedConfig
from transformers.utils import logging

from itt_composer.basics.errors import UserError
from itt_composer.basics.files import check_new_folder
from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.folder import model_card, write_model_folder
from itt_composer.models.loading import (
    as_dense,
    first_words,
    load_config,
    load_weights,
)
from itt_composer.models.tokenizer_folder import TOKENIZER_PATTERNS, tokenizer_files
from itt_composer.recipe.llama_config import check_llama_folder


def convert_llama(
    source: str,
    out: Path,
    thinking_steps: int,
    select_ratios: list[float] | None = None,
    thinking_layers: list[int] | None = None,
    seed: int = 17,
) -> None:
    """Write the ITT of a LLaMA as a transformers folder.

    Args:
        source: a transformers folder or a name on the hub.
        out: folder to make.
        thinking_steps: T, one full pass and T-1 further steps.
        select_ratios: ρ_t of the further steps; None means 0.5 each.
        thinking_layers: 0-based indices; None means every other one.
        seed: of the routers, which alone are random.

    Raises:
        UserError: `out` is not empty, `source` is not a LLaMA, or no ITT has such settings.
    """
    check_new_folder(out)
    with _quiet_transformers():
        llama = _llama_config(source)
        try:
            config = as_dense(
                llama,
                thinking="itt",
                thinking_steps=thinking_steps,
                select_ratios=select_ratios,
                thinking_layers=thinking_layers,
            )
        except ValueError as error:
            raise UserError(f"no such ITT: {error}") from None
        torch.manual_seed(seed)
        model = load_llama(source, config)
        facts = (
            f"Made from the LLaMA `{source}`, whose weights it holds unchanged. Until it is "
            "trained further it computes what the LLaMA computes: φ_0 = 1, every other φ_t = 0. "
            f"Routers are random (seed {seed})."
        )
        card = model_card(model, f"{Path(source).name}, ready to think", facts)
        write_model_folder(out, model, card, _tokenizer_folder(source))


def load_llama(source: str, config: IttConfig) -> IttForCausalLM:
    """Load an ITT with a LLaMA's weights, fresh routers and steps that contribute nothing yet.

    Raises:
        UserError: the weights cannot be read, are not finite, or are not those of a LLaMA of this
            configuration.
    """
    model, missing = load_weights(source, config)
    if lost := missing & _llama_weights(config):
        raise UserError(f"{source} is not a whole LLaMA: it lacks {', '.join(sorted(lost))}")
    for layer in model.thinking_layers:
        layer.step_encoding.data[0] = 1
        layer.step_encoding.data[1:] = 0
    _make_generation_savable(model)
    return model


def _llama_config(source: str) -> PretrainedConfig:
    check_llama_folder(source)
    config = load_config(source)
    is_dense = config.model_type == "itt" and config.thinking == "dense"
    if config.model_type != "llama" and not is_dense:
        raise UserError(f"{source} is a {config.model_type!r}; from-llama takes a LLaMA")
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"{source} is quantized; from-llama takes the weights it was made from")
    return config


def _llama_weights(config: IttConfig) -> set[str]:
    """Return the names of the weights that a LLaMA of this configuration has."""
    with torch.device("meta"):
        return set(IttForCausalLM(as_dense(config)).state_dict())


def _make_generation_savable(model: IttForCausalLM) -> None:
    """Keep those of the LLaMA's generation settings that transformers agrees to save."""
    assert model.generation_config is not None
    try:
        model.generation_config.validate(strict=True)
    except ValueError:  # as older models have it: a temperature, yet no sampling
        ends = {
            name: getattr(model.generation_config, name)
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
        model.generation_config = GenerationConfig.from_model_config(model.config)
        model.generation_config.update(**ends)


def _tokenizer_folder(source: str) -> Path | None:
    """Return the folder with the tokenizer's files, if there are any."""
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(source, allow_patterns=list(TOKENIZER_PATTERNS)))
        except (OSError, LocalEntryNotFoundError, HFValidationError) as error:
            raise UserError(
                f"the tokenizer of {source} cannot be fetched: {first_words(error)}"
            ) from None
    return folder if tokenizer_files(folder) else None


@contextmanager
def _quiet_transformers():
    """Silence the warnings of transformers that the routers are new: they should be."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
