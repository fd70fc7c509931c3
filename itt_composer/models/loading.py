"""Loading a model from a transformers folder or the hub, never running code that lies in it."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

import itt_composer  # noqa: F401  (makes the Auto classes know ITT models)
from itt_composer.errors import UserError


def load_model(folder: str | Path, revision: str | None = None) -> PreTrainedModel:
    """A causal language model in evaluation mode and its own dtype, ours or any of transformers.

    Args:
        folder: or a name on the hub.
        revision: branch, tag or commit of a model on the hub; None is its main branch.

    Raises:
        UserError: the folder holds none that can be read whole.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype="auto",
            trust_remote_code=False,
            output_loading_info=True,
            revision=revision or "main",
        )
    except Exception as error:  # broken files and configurations raise all kinds
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} cannot be loaded: {reason}") from None
    model, report = loaded
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise UserError(f"{folder} cannot be loaded: its files lack {missing}")
    return model.eval()
