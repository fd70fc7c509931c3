"""Makes transformers' Auto classes know ITT models; the model is imported when one is made.

Files of transformers import each other while they are half loaded, and the model is built on some.
"""

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


def register() -> None:
    """Register the configuration's models; importing `modeling.py` puts the real classes there."""
    for auto, name in ((AutoModel, "IttModel"), (AutoModelForCausalLM, "IttForCausalLM")):
        if IttConfig not in auto._model_mapping.keys():  # noqa: SIM118
            auto.register(IttConfig, type(name, (_LateClass,), {"name": name}))


register()
