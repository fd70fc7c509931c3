"""A model folder is data: its files may ask a library for nothing but what we know.

transformers lets the JSON files beside a model name kernels and models of the hub, and runs code
that lies in a folder. So every loader of ours reads these files first. Pure Python, so that a
folder is checked before torch is imported.
"""

import json
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from itt_composer.basics.errors import UserError

# The files from which transformers takes settings.
SETTING_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
# The files that say which file holds a weight.
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# What may not lie in a folder at all, and what to do.
REFUSED_FILES = {
    "adapter_config.json": "an adapter loads another model: merge it into that one and name the "
    "merged folder",
    "custom_generate": "code that comes with a model is never run: remove it",
}
# Keys such as `_attn_implementation_internal`: of whatever, only these values are known.
IMPLEMENTATION = re.compile("implementation", re.IGNORECASE)
IMPLEMENTATIONS = {
    "eager": (),
    "sdpa": (),
    "flex_attention": (),
    "flash_attention_2": ("flash_attn",),
    "flash_attention_3": ("flash_attn_3", "flash_attn_interface"),
    "batched_mm": (),
    "grouped_mm": (),
}
# Keys that would have a library load code or another model.
SWITCHES = {
    "allow_all_kernels",
    "configuration_files",
    "custom_generate",
    "gguf_file",
    "kernel_config",
    "trust_remote_code",
    "use_kernels",
    "use_pretrained_backbone",
    # Ways to generate that transformers keeps as code on the hub.
    "constraints",
    "dola_layers",
    "force_words_ids",
    "penalty_alpha",
}
# Quantizers of an installed package; the others fetch kernels.
QUANTIZERS = ("awq", "bitsandbytes", "compressed-tensors", "gptq", "hqq", "quanto", "torchao")
# Notes in tokenizer_config.json of where a file lay once, which nothing reads.
OLD_PLACES = ("added_tokens_file", "special_tokens_map_file")


def check_model_folder(folder: Path) -> None:
    """Refuse a folder whose files ask for anything unknown; one that is not there is left alone.

    Raises:
        UserError: names the file, the key and its value.
    """
    for name, advice in REFUSED_FILES.items():
        if (folder / name).exists():
            raise UserError(f"{folder} holds {name}: {advice}")
    for name in (*SETTING_FILES, *INDEX_FILES):
        content = _content(folder / name)
        if isinstance(content, Mapping):
            check_model_file(content, str(folder / name))


def check_model_file(content: Mapping[str, Any], file: str) -> None:
    """Refuse a file that asks for anything unknown.

    Args:
        content: of one of `SETTING_FILES` or `INDEX_FILES`.
        file: for the message.

    Raises:
        UserError: names the first such key and its value.
    """
    problems = _odd_places(content) if file.endswith(INDEX_FILES) else _odd_settings(content)
    for key, value, advice in problems:
        raise UserError(f"{file} has {key}={json.dumps(value)[:100]}, {advice}")


def _odd_settings(content: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield key, value and what is wrong with it, from every depth."""
    if isinstance(content, list):
        for place, part in enumerate(content):
            yield from _odd_settings(part, f"{path}{place}.")
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        name = f"{path}{key}"
        if IMPLEMENTATION.search(key):
            yield from _odd_implementations(name, value)
        elif advice := _wrong_with(key, value):
            yield name, value, advice
        else:
            yield from _odd_settings(value, f"{name}.")


def _odd_implementations(name: str, value: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield an implementation that is not known or not installed; parts may have their own."""
    if isinstance(value, Mapping):
        for part, own in value.items():
            yield from _odd_implementations(f"{name}.{part}" if part else name, own)
    elif value is None or isinstance(value, bool):
        return  # `_attn_implementation_autoset` of older versions
    elif not isinstance(value, str) or value not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        yield name, value, f"and only {known} are known; nothing else is loaded, so remove the key"
    elif (packages := IMPLEMENTATIONS[value]) and not any(map(find_spec, packages)):
        # transformers would fetch a kernel instead
        yield name, value, f"which needs the package {packages[0]}: install it, or remove the key"


def _wrong_with(key: str, value: Any) -> str | None:
    """Say what is wrong with the value of a key; None where nothing is."""
    if value is None or value is False:
        return None
    if key in SWITCHES:
        return "which would load code or another file: a model's files decide nothing of that kind"
    if key == "num_beam_groups" and value != 1:
        return "a way to generate that transformers keeps as code on the hub; remove the key"
    if key == "quant_method" and value not in QUANTIZERS:
        return f"and only {', '.join(QUANTIZERS)} are known; the others may fetch kernels"
    is_place = key.endswith("_file") or key == "transformers_weights"
    if is_place and key not in OLD_PLACES and not _is_file_name(value):
        return "which is not a file in its folder; remove the key"
    return None


def _odd_places(content: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield the weights that an index has outside of its folder."""
    places = content.get("weight_map")
    for name, place in places.items() if isinstance(places, Mapping) else ():
        if not _is_file_name(place):
            yield f"weight_map.{name}", place, "which is not a file in its folder"


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and not re.search(r"[/\\:]", value) and value not in ("", "..")


def _content(file: Path) -> Any:
    """Return what a file holds; None where there is none or, as its reader will say, no JSON."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
