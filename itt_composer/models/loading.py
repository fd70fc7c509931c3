"""Loads a model from a transformers folder or the hub, whole, and never runs code that lies in it.

A LLaMA becomes our dense model, which computes the same bits. A folder is never completed from the
hub.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils import enable_progress_bars
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import (
    logging,
)

import itt_composer  # noqa: F401  (makes the Auto classes know ITT models)
from itt_composer.basics.errors import UserError
from itt_composer.models.configuration import IttConfig
from itt_composer.models.modeling import IttForCausalLM
from itt_composer.models.sources import check_source
from itt_composer.models.stored_weights import stored_dtypes, stored_weight
from itt_composer.recipe.llama_config import (
    CODE_KEYS,
    COMMON_KEYS,
    HARMLESS_KEYS,
    LLAMA_TYPES,
    in_version_4,
    llama_config,
    llama_fields,
    refuse_unread,
)

# The types that weights which are not quantized are computed with.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# How kinds of models name the rotary base, and the share of a head's dimensions that rotate.
THETA_NAMES = ("rope_theta", "rotary_emb_base")
PARTIAL_NAMES = ("partial_rotary_factor", "rotary_pct")
# Where the hub's library says that it tries again.
RETRIES = getLogger("huggingface_hub.utils._http")


class NoConfigError(UserError):
    """A folder or the hub gives no configuration of that name.

    Attributes:
        reason: of transformers, on one line.
    """

    def __init__(self, source: str, reason: str):
        self.reason = reason
        super().__init__(f"{source} cannot be loaded: {reason}")


def load_model(folder: str | Path, revision: str | None = None) -> PreTrainedModel:
    """Load a causal language model, ours or any of transformers, in evaluation mode and its dtype.

    Args:
        folder: or a name on the hub.
        revision: branch, tag or commit of a model on the hub; None is its main branch.

    Returns:
        an `IttForCausalLM` for our models and LLaMAs, a dense one for the latter.

    Raises:
        UserError: no model can be read whole, weights are NaN or infinite, or the configuration
            has keys that nothing reads.
    """
    source = str(folder)
    config = load_config(source, revision)
    if isinstance(config, LlamaConfig) and not isinstance(config, IttConfig):
        config = as_dense(config)
    model, missing = load_weights(source, config, revision)
    if missing:
        raise UserError(f"{source} cannot be loaded: its files lack {', '.join(sorted(missing))}")
    return model.eval()


def load_config(source: str, revision: str | None = None) -> PretrainedConfig:
    """Load the configuration of a folder or of a model on the hub; every key must be understood.

    Raises:
        UserError: there is none, it is of an unknown kind, it has keys that nothing reads, or it
            or a file beside it asks for something unknown; see `recipe.model_is_data`.
    """
    named = f"{source} cannot be loaded: it"
    try:
        with _without_retries():
            check_source(source, revision)
            raw, _ = PretrainedConfig.get_config_dict(source, **_places(source, revision))
    except UserError:
        raise
    except Exception as error:  # broken files and configurations raise all kinds
        raise NoConfigError(source, first_words(error)) from None
    try:
        if not raw.get("model_type"):
            raise NoConfigError(source, "it has no config.json that names its model_type")
        if raw["model_type"] not in CONFIG_MAPPING:
            raise UserError(
                f"{named} is of a kind that transformers {transformers.__version__} does not "
                f"know: model_type={raw['model_type']!r}"
            )
        return _config_from(CONFIG_MAPPING[raw["model_type"]], raw, named)
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(f"{source} cannot be loaded: {first_words(error)}") from None


def load_weights(
    source: str, config: PretrainedConfig, revision: str | None = None
) -> tuple[Any, set[str]]:
    """Load the weights of a folder into a configuration's model; return it and what is missing.

    Raises:
        UserError: weights cannot be read, do not fit, would be left over, are not finite, or have
            a type that nothing computes with.
    """
    kind: Any = IttForCausalLM if isinstance(config, IttConfig) else AutoModelForCausalLM
    text = config.get_text_config()
    is_tied = getattr(text, "tie_word_embeddings", False)  # before loading, which may change it
    try:
        with without_bars():
            model, report = kind.from_pretrained(
                source,
                config=config,
                dtype="auto",
                trust_remote_code=False,
                output_loading_info=True,
                **_places(source, revision),
            )
        dropped = set(report["unexpected_keys"]) | _untied(source, is_tied, model, revision)
    except Exception as error:  # as above
        raise UserError(f"{source} cannot be loaded: {first_words(error)}") from None
    if dropped:
        raise UserError(
            f"{source} cannot be loaded: it has besides {', '.join(sorted(dropped))}, for which "
            f"the model of its config.json has no place"
        )
    if getattr(config, "quantization_config", None) is None:
        _refuse_odd_dtypes(source, model, revision)
    refuse_broken(model, source)
    return model, set(report["missing_keys"])


def as_dense(llama: PretrainedConfig, **thinking: Any) -> IttConfig:
    """Turn a LLaMA's configuration into ours: dense, or with the thinking settings given.

    Raises:
        ValueError: a thinking setting is impossible; the sentence names the field.
    """
    return IttConfig(**llama_fields(llama.to_dict()), **(thinking or {"thinking": "dense"}))


def broken_weights(model: nn.Module) -> list[str]:
    """Return the names of parameters that hold NaN or infinity, as in a model that diverged."""
    return [
        name
        for name, weight in model.named_parameters()
        if weight.dtype in DTYPES
        and weight.numel()
        and not all(torch.isfinite(end) for end in weight.detach().aminmax())
    ]


def refuse_broken(model: nn.Module, named: str) -> None:
    """Refuse weights that are not finite.

    Raises:
        UserError: names the first of them.
    """
    if broken := broken_weights(model):
        count = len(broken) - 1
        others = f" (and so do {count} others)" if count > 1 else " (and so does one other)"
        others = others if count else ""
        raise UserError(
            f"{named} is of no use: {broken[0]} holds NaN or infinity{others}, as in a model that "
            "diverged; take an earlier checkpoint"
        )


def first_words(error: Exception) -> str:
    """Return the beginning of a library's message, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _places(source: str, revision: str | None) -> dict[str, Any]:
    """Return where transformers may look: in a folder alone, or on the hub."""
    return {"revision": revision or "main", "local_files_only": Path(source).is_dir()}


def _config_from(kind: type[PretrainedConfig], raw: dict[str, Any], named: str) -> Any:
    """Make a configuration of this kind, and of its parts; every key must be understood."""
    if raw.get("model_type") in LLAMA_TYPES:
        return kind.from_dict(llama_config(raw, named))
    parameters = {
        name
        for base in kind.__mro__
        if issubclass(base, PretrainedConfig)
        for name in inspect.signature(base.__init__).parameters
    }
    theta = next((name for name in THETA_NAMES if name in parameters), None)
    if theta is not None:
        partial = next((name for name in PARTIAL_NAMES if name in parameters), None)
        raw = in_version_4(raw, named, theta, partial)
    known = parameters | kind().to_dict().keys() | set(kind.attribute_map)
    refuse_unread(raw, known | COMMON_KEYS | HARMLESS_KEYS | CODE_KEYS, named)
    for name, part in kind.sub_configs.items():
        content = raw.get(name)
        if isinstance(content, dict):
            part = CONFIG_MAPPING[content["model_type"]] if "model_type" in content else part
            raw[name] = _config_from(part, content, f"{named} ({name})").to_dict()
    return kind.from_dict(raw)


def _untied(source: str, is_tied: bool, model: PreTrainedModel, revision: str | None) -> set[str]:
    """Find an output embedding that is stored apart, although the model ties it to the input's."""
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not is_tied or output is None:
        return set()
    (name,) = {f"{name}.weight" for name, module in model.named_modules() if module is output}
    stored, used = stored_weight(source, name, revision), embedding.weight
    assert isinstance(used, torch.Tensor)
    is_same = stored is None or torch.equal(stored.to(used.dtype), used.detach().cpu())
    return set() if is_same else {name}


def _refuse_odd_dtypes(source: str, model: nn.Module, revision: str | None) -> None:
    names = {name for name, _ in model.named_parameters()}
    for name, dtype in stored_dtypes(source, revision):
        if name in names and dtype not in DTYPES:
            odd, *good = (str(each).removeprefix("torch.") for each in (dtype, *DTYPES))
            raise UserError(
                f"{source} cannot be loaded: {name} is stored as {odd}, with which the model does "
                f"not compute; store it as {', '.join(good[:-1])} or {good[-1]}"
            )


@contextmanager
def _without_retries() -> Iterator[None]:
    """Hide the hub's warning for each try that failed; the last one becomes a sentence."""
    before = RETRIES.level
    RETRIES.setLevel(ERROR)
    try:
        yield
    finally:
        RETRIES.setLevel(before)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the bar of transformers over the files of a model; downloads keep theirs."""
    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    enable_progress_bars()  # of the hub, which the line above switches off as well
    try:
        yield
    finally:
        logging.enable_progress_bar()
