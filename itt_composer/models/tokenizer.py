"""Loads a model's tokenizer, and encodes text as every command does.

`generate`, `eval` and `analysis` give a model the ids that a document of its training rows has:
its tokenizer returns them, as `data_prep` writes one that does (`tokenizer_json.py`).
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from itt_composer.basics.errors import UserError
from itt_composer.models.sources import check_source

# Signs in the errors of transformers 4.57 for tokenizers that version 5 has saved.
SAVED_BY_5 = ("TokenizersBackend", "'list' object has no attribute 'keys'")


def load_tokenizer(source: str | Path, advice: str = "") -> Any:
    """Load the tokenizer of a folder or of a model on the hub; never run code that lies in it.

    Args:
        source: folder or hub name.
        advice: what the user can do if there is none.

    Raises:
        UserError: it cannot be loaded, or asks for something unknown; see `recipe.model_is_data`.
    """
    check_source(source)
    try:
        if name := _class_of_code(source, Path(source).is_dir()):
            raise UserError(
                f"the tokenizer in {source} cannot be loaded: its auto_map names code, which is "
                f"never run, and transformers has no tokenizer_class={name} of its own{advice}"
            )
        return _load(source)
    except UserError:
        raise
    except Exception as error:  # transformers raises whatever its loaders met
        if any(sign in str(error) for sign in SAVED_BY_5):
            return _saved_by_5(source)
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"the tokenizer in {source} cannot be loaded ({reason}){advice}") from None


def _class_of_code(source: str | Path, is_here: bool) -> str | None:
    """Return a tokenizer's class that only code beside it has, for which 5.x takes another."""
    from transformers.models.auto import tokenization_auto as auto

    config = auto.get_tokenizer_config(str(source), local_files_only=is_here)
    name = config.get("tokenizer_class")
    if not config.get("auto_map") or name is None:
        return None
    plain = name.removesuffix("Fast")
    is_known = any(map(auto.tokenizer_class_from_name, (plain, f"{plain}Fast")))
    return None if is_known else name


def check_tokenizer_folder(tokenizer: Path | None) -> None:
    """Refuse a --tokenizer that is not a folder.

    Raises:
        UserError: it is a file, or not there.
    """
    if tokenizer is not None and not tokenizer.is_dir():
        wrong = "is a file" if tokenizer.exists() else "is not there"
        raise UserError(f"--tokenizer {tokenizer} {wrong}; name the tokenizer's folder")


def documents_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Encode texts as documents begin in training rows, many at once on all cores.

    The tokenizer itself adds BOS where the rows have it. As in lm-eval a text that spells out BOS
    gets no second one, unless the tokenizer reads that name as text.
    """
    begin = tokenizer.bos_token or tokenizer.eos_token
    has_bos = [
        bool(begin) and not tokenizer.split_special_tokens and text.startswith(begin)
        for text in texts
    ]
    ids: list[list[int]] = [[] for _ in texts]
    for is_begun in (False, True):
        places = [place for place, found in enumerate(has_bos) if found is is_begun]
        if places:
            options = {"add_special_tokens": False} if is_begun else {}
            found = tokenizer([texts[place] for place in places], **options)["input_ids"]
            for place, own in zip(places, found, strict=True):
                ids[place] = own
    return ids


def document_ids(tokenizer: Any, text: str) -> list[int]:
    """Encode one text, see `documents_ids`."""
    return documents_ids(tokenizer, [text])[0]


def _load(source: str | Path) -> Any:
    from transformers import AutoTokenizer

    from itt_composer.models.tokenizer_folder import copy_tokenizer, is_read_alike

    folder = Path(source)
    if not folder.is_dir():
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    options = {"trust_remote_code": False, "local_files_only": True}
    if is_read_alike(folder):
        return AutoTokenizer.from_pretrained(source, **options)
    with TemporaryDirectory() as place:  # as an exported folder has it
        copy_tokenizer(folder, Path(place))
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    tokenizer.name_or_path = str(source)
    return tokenizer


def _saved_by_5(source: str | Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    # A list in version 5, which 4.57 cannot take; tokenizer.json says which tokens are special.
    return PreTrainedTokenizerFast.from_pretrained(source, extra_special_tokens={})


def readable_config(config: dict[str, Any]) -> dict[str, Any]:
    """Make any `tokenizer_config.json` readable for transformers 4.57 and 5."""
    if isinstance(config.get("extra_special_tokens"), list):
        config = dict(config)
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    if config.get("tokenizer_class") == "TokenizersBackend":
        config = config | {"tokenizer_class": "PreTrainedTokenizerFast"}
    if config.get("tokenizer_class") == "PreTrainedTokenizerFast":
        # Its own default has token types, which `generate(**tokenizer(text))` refuses.
        config = {"model_input_names": ["input_ids", "attention_mask"]} | config
    return config
