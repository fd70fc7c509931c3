"""Inner Thinking Transformer: pretraining recipes for MosaicML Composer.

Importing this package makes `AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and `AutoTokenizer`
know the model type "itt"; its tokenizers are LLaMA's where a folder does not name another.
The registration waits until transformers loads its own, so that command lines which only check
their input start without torch.
"""

import importlib
import sys

from itt_composer.basics import startup as command_line

command_line.prepare()  # first: what follows takes a part of a second

import wrapt  # noqa: E402

__version__ = "0.2.0"  # the only place; pyproject.toml reads it here

_CONFIG = "itt_composer.models.configuration"
_AUTO = "transformers.models.auto"
_CONFIG_AUTO, _MODEL_AUTO, _TOKENIZER_AUTO = (
    f"{_AUTO}.{file}_auto" for file in ("configuration", "modeling", "tokenization")
)
# Our configuration is built on these, and each may be what imports the Auto classes while it loads.
_BASES = ("transformers.configuration_utils", "transformers.models.llama.configuration_llama")
_WATCHED = (_CONFIG_AUTO, _MODEL_AUTO, _TOKENIZER_AUTO, *_BASES, _CONFIG)
_loaded: set[str] = set()


def _register(module) -> None:
    """Register what transformers has loaded, once no file that this needs is half loaded."""
    _loaded.add(module.__name__)
    half_loaded = [name for name in _WATCHED if name in sys.modules and name not in _loaded]
    if _CONFIG_AUTO not in _loaded or half_loaded:
        return
    if _CONFIG not in _loaded:
        importlib.import_module(_CONFIG)  # comes back here when it is loaded
        return
    importlib.import_module("itt_composer.models.own_class")
    if _MODEL_AUTO in _loaded:
        importlib.import_module("itt_composer.models.auto")
    if _TOKENIZER_AUTO in _loaded:
        llama = importlib.import_module("transformers").models.llama
        # The slow one is a placeholder where sentencepiece is missing.
        sys.modules[_TOKENIZER_AUTO].AutoTokenizer.register(
            sys.modules[_CONFIG].IttConfig,
            fast_tokenizer_class=llama.LlamaTokenizerFast,
            exist_ok=True,
        )


for _name in _WATCHED:
    wrapt.register_post_import_hook(_register, _name)
