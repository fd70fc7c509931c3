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

# Registers its class with transformers at its end.
_CONFIG, _MODEL = "itt_composer.models.configuration", "itt_composer.models.modeling"
_AUTO = "transformers.models.auto"
# Our model is built on these, and they may be what imports the Auto classes while they load.
_BASES = (
    "transformers.modeling_layers",
    "transformers.models.llama.modeling_llama",
    "itt_composer.models.layer",
)
_loaded: set[str] = set()


def _register_model(module) -> None:
    """Import our model once the Auto classes are there and no base is half loaded."""
    _loaded.add(module.__name__)
    half_loaded = [name for name in _BASES if name in sys.modules and name not in _loaded]
    if f"{_AUTO}.modeling_auto" in _loaded and not half_loaded:
        importlib.import_module(_MODEL)


def _register_tokenizers(module) -> None:
    llama = importlib.import_module("transformers").models.llama
    config = importlib.import_module(_CONFIG).IttConfig
    module.AutoTokenizer.register(config, llama.LlamaTokenizer, llama.LlamaTokenizerFast)


wrapt.register_post_import_hook(_register_tokenizers, f"{_AUTO}.tokenization_auto")
wrapt.register_post_import_hook(
    lambda _: importlib.import_module(_CONFIG), f"{_AUTO}.configuration_auto"
)
for _name in (f"{_AUTO}.modeling_auto", *_BASES):
    wrapt.register_post_import_hook(_register_model, _name)
