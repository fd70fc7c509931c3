"""Inner Thinking Transformer: pretraining recipes for MosaicML Composer.

Importing this package makes `AutoConfig` and `AutoModelForCausalLM` know the model type "itt".
The registration waits until transformers loads its own, so that command lines which only check
their input start without torch.
"""

import importlib

import wrapt

__version__ = "0.1.0"

# Each of these modules registers its class with transformers at its end.
_REGISTERED_WITH = {
    "transformers.models.auto.configuration_auto": "itt_composer.models.configuration",
    "transformers.models.auto.modeling_auto": "itt_composer.models.modeling",
}


def _register(auto_module) -> None:
    importlib.import_module(_REGISTERED_WITH[auto_module.__name__])


for _name in _REGISTERED_WITH:
    wrapt.register_post_import_hook(_register, _name)
