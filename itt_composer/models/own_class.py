"""Makes transformers take this package's classes before the code that lies in a model's folder.

From 5.10 on, or earlier, it does so itself for any class that is registered. 4.57 and 5.3 run the
folder's code wherever `trust_remote_code=True` allows it.
"""

import functools
import inspect
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from itt_composer.models.configuration import IttConfig


def hide_code_of_folders() -> None:
    """Have transformers find no code named in the configuration of an ITT."""
    read = PretrainedConfig.get_config_dict.__func__  # type: ignore[attr-defined]

    @functools.wraps(read)
    def get_config_dict(cls: type, *args: Any, **kwargs: Any) -> tuple[dict, dict]:
        config, others = read(cls, *args, **kwargs)
        if config.get("model_type") == IttConfig.model_type:
            config.pop("auto_map", None)
        return config, others

    PretrainedConfig.get_config_dict = classmethod(get_config_dict)  # type: ignore[assignment]


if "explicit_local_code" not in inspect.unwrap(AutoConfig.from_pretrained).__code__.co_varnames:
    hide_code_of_folders()
