"""Makes transformers' Auto classes know ITT models; the model is imported when one is made.

Files of transformers import each other while they are half loaded, and the model is built on some.
"""

import sys
from typing import Any, ClassVar

from transformers import AutoModel, AutoModelForCausalLM

from itt_composer.models.configuration import IttConfig


class _LateClass:
    """Stands for a class of `modeling.py` until the Auto classes make an object of it."""

    config_class = IttConfig
    name: ClassVar[str]

    @classmethod
    def _real(cls) -> Any:
        from itt_composer.models import modeling

        return getattr(modeling, cls.name)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._real().from_pretrained(*args, **kwargs)

    @classmethod
    def _from_config(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._real()._from_config(*args, **kwargs)


# `modeling.py` registers the real classes at its end.
if "itt_composer.models.modeling" not in sys.modules:
    for _auto, _name in ((AutoModel, "IttModel"), (AutoModelForCausalLM, "IttForCausalLM")):
        _auto.register(IttConfig, type(_name, (_LateClass,), {"name": _name}), exist_ok=True)
