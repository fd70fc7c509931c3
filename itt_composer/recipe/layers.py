"""YAML files and `key=value` overrides → a validated pydantic class; mistakes become sentences.

Every sentence names where the value came from (a file or the command line), the key, and what
to do. Nothing here imports torch.
"""

import dataclasses
import difflib
import io
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from itt_composer.basics.errors import FieldError, UserError

COMMAND_LINE = "command line"
NO_MAPPING = "must hold `key: value` lines, not a list or a single value"
YAML_TERMS = {
    "an object": "a mapping",
    "a valid array": "a list",
    "a valid dictionary": "a mapping",
}
# What OmegaConf takes for a number and PyYAML does not: 12e03, 1.5e3.
EXPONENT = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
INTERPOLATION = re.compile(r"(\\*)\$\{")
Layer = tuple[str, DictConfig]


def _documents_or_share(value: float) -> float:
    if value < 1:
        return value
    if value != int(value):
        raise ValueError(f"{value} is neither a number of documents nor a share of them below 1")
    return int(value)


# How many documents of a task lm-eval takes: its first ones, or the share of them.
Limit = Annotated[float, Field(gt=0), AfterValidator(_documents_or_share)]
Validated = TypeVar("Validated", bound=BaseModel)


class _Dumper(yaml.SafeDumper):
    """Quotes the numbers of OmegaConf, too, where they are text."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return a YAML document from which `read_yaml` and `values_of` give back the same values."""
    return yaml.dump(_literal(values), Dumper=_Dumper, sort_keys=False)


def _literal(value: Any) -> Any:
    """Put backslashes before every `${`, which OmegaConf takes off again."""
    if isinstance(value, str):
        return INTERPOLATION.sub(r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {key: _literal(inner) for key, inner in value.items()}
    return [_literal(inner) for inner in value] if isinstance(value, list) else value


def values_of(text: str) -> Any:
    """Return the plain values in a YAML document such as `as_yaml` writes.

    Raises:
        yaml.YAMLError: it is broken.
    """
    try:
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=True)
    except (OSError, OmegaConfBaseException) as error:
        raise yaml.YAMLError(str(error).splitlines()[0]) from None


def validate(
    cls: type[Validated], layers: Sequence[Layer], forms: Mapping[str, str] | None = None
) -> Validated:
    """Merge the layers, later ones winning, and check the result against a pydantic class.

    Args:
        cls: the class to make of it.
        layers: (source, content) pairs.
        forms: what a key takes, by its last name, where pydantic's words would not help.

    Raises:
        UserError: one sentence per mistake.
    """
    sources = Sources(layers)
    try:
        merged = OmegaConf.merge(*(content for _, content in layers))
        values = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(_missing(sources.last_file, error.full_key)) from None
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        reason = str(error.msg or error).splitlines()[0]
        raise UserError(f"{sources.of(key)}: {key}: {reason}") from None
    try:
        # As JSON: strict about types, yet lists and mappings may fill any container.
        return cls.model_validate_json(json.dumps(values, ensure_ascii=False).encode())
    except (TypeError, UnicodeEncodeError) as error:  # !!binary, a lone surrogate
        raise UserError(
            f"{sources.last_file}: a value is neither text nor number: {error}"
        ) from None
    except ValidationError as error:
        sentences = [_sentence(cls, details, sources, forms or {}) for details in error.errors()]
        raise UserError("\n".join(dict.fromkeys(sentences))) from None


def read_yaml(path: Path) -> DictConfig:
    """Read a YAML file; interpolations stay unresolved.

    Raises:
        UserError: the file is missing, unreadable, broken, or not a mapping.
    """
    try:
        content = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except OSError as error:
        if error.strerror is None:  # OmegaConf's, for a file that holds a number
            raise UserError(f"{path}: {NO_MAPPING}") from None
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path}: {where}broken YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: broken YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, DictConfig):
        raise UserError(f"{path}: {NO_MAPPING}")
    return content


def parse_overrides(overrides: Sequence[str]) -> DictConfig:
    """Read `key=value` texts as a nested mapping; values are YAML.

    Raises:
        UserError: a text has another form.
    """
    malformed = [text for text in overrides if not re.match(r"[^=]+=", text)]
    if malformed:
        raise UserError(
            "\n".join(
                f"{COMMAND_LINE}: {text!r} is not of the form key=value" for text in malformed
            )
        )
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except yaml.MarkedYAMLError as error:
        reason = f"broken YAML: {error.problem or error.context}"
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        reason = str(error).splitlines()[0]
    raise UserError(f"{COMMAND_LINE}: {' '.join(overrides)}: {reason}")


class Sources:
    """Knows which layer a key's value came from: the last one that sets it or something in it."""

    def __init__(self, layers: Iterable[Layer]):
        self._layers = [
            (source, OmegaConf.to_container(content, resolve=False)) for source, content in layers
        ]
        self.last_file = next(
            source for source, _ in reversed(self._layers) if source != COMMAND_LINE
        )

    def has(self, location: Sequence[Any]) -> bool:
        """Return whether some layer sets exactly this location, written as keys."""
        return any(_value_at(content, location) is not _UNSET for _, content in self._layers)

    def of(self, key: str) -> str:
        """Return the source of `key`; for one that is set nowhere, the last file."""
        place = self._place_of(key)
        return self.last_file if place < 0 else self._layers[place][0]

    def blame(self, error: FieldError, section: str = "") -> str:
        """Return a sentence about settings, blamed on the one that was set last.

        Args:
            error: names the settings.
            section: the prefix of their keys, such as "model.".
        """
        subject, *others = (section + name for name in error.fields)
        last = max([subject, *others], key=self._place_of)  # the first of several of one layer
        typed = ""
        if last != subject:
            _, content = self._layers[self._place_of(last)]
            typed = f"{last}={_as_typed(_value_at(content, last.split('.')))}: "
        return f"{self.of(last)}: {typed}{section}{error}"

    def _place_of(self, key: str) -> int:
        """Return the number of the last layer that sets the key; -1 if none does."""
        steps = key.split(".")
        places = range(len(self._layers))
        return max(
            (place for place in places if _value_at(self._layers[place][1], steps) is not _UNSET),
            default=-1,
        )


_UNSET = object()


def _value_at(content: Any, steps: Sequence[Any]) -> Any:
    """Return what stands at a location; keys that YAML reads as numbers are found as text, too."""
    for step in steps:
        if not isinstance(content, dict):
            return _UNSET
        keys = {str(key): key for key in content}
        if step not in content and step not in keys:
            return _UNSET
        content = content[step if step in content else keys[step]]
    return content


def _as_typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sentence(
    cls: type[BaseModel], details: Any, sources: Sources, forms: Mapping[str, str]
) -> str:
    """Write one pydantic error as one sentence."""
    # After the keys pydantic names list positions and the alternatives of a union.
    location = list(itertools.takewhile(_is_key, details["loc"]))
    if sources.has(details["loc"]):
        location = list(details["loc"])
    if details["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown_key(cls, list(details["loc"]), sources)  # its last step may be any text
    path = ".".join(location)
    source = sources.of(path)
    if details["type"] == "missing":
        return _missing(source, path)
    if details["type"] == "value_error":
        error = details["ctx"]["error"]
        if isinstance(error, FieldError):
            return sources.blame(error, "".join(f"{step}." for step in location))
        return f"{source}: {path}: {error}"
    if details["input"] is None:
        return f"{source}: {path} is empty (null); give it a value, or leave it out"
    if details["type"] == "string_type" and isinstance(details["input"], (int, float)):
        return (
            f"{source}: {path}: YAML reads it as {json.dumps(details['input'])}, not as text; put "
            f"quotes around what is written there, in a shell two kinds of them: {path}='\"…\"'"
        )
    message = forms.get(location[-1])
    if message is None:
        message = details["msg"][0].lower() + details["msg"][1:]
        for term, yaml_term in YAML_TERMS.items():
            message = message.replace(term, yaml_term)
    return f"{source}: {path}={json.dumps(details['input'])}: {message}"


def _missing(source: str, key: str | None) -> str:
    return f"{source}: {key} is missing; set it there, or give {key}=… on the command line"


def _unknown_key(cls: type[BaseModel], location: list[Any], sources: Sources) -> str:
    *section, name = location
    known = _keys_in(cls, section)
    near = _nearest(name, known)
    prefix = "".join(f"{step}." for step in section)
    hint = f"did you mean {prefix}{near}?" if near else f"known are: {', '.join(known)}"
    path = prefix + name
    return f"{sources.of(path)}: unknown key {path}; {hint}"


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that was meant: nearly the same letters, or further words."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    words = set(name.split("_"))
    longer = [each for each in known if words <= set(each.split("_"))]
    return next(iter([*near, *longer]), None)


def _is_key(step: Any) -> bool:
    return isinstance(step, str) and step.isidentifier()


def _keys_in(cls: type[BaseModel], location: list[str]) -> list[str]:
    """Return the keys that may stand at a location."""
    group: Any = cls
    for step in location:
        annotation = group.model_fields[step].annotation
        group = next(
            (choice for choice in get_args(annotation) if choice is not type(None)), annotation
        )
    if dataclasses.is_dataclass(group):
        return [field.name for field in dataclasses.fields(group)]
    return list(group.model_fields)
