"""How a text is to be continued, checked before torch is imported."""

from dataclasses import dataclass
from typing import Any

from itt_composer.basics.errors import UserError

LOWEST_TEMPERATURE = 1e-3  # below it probabilities overflow


@dataclass(frozen=True)
class GenerationOptions:
    """How to continue a text.

    Attributes:
        select_ratios: ρ_t, or None for the model's own.
        early_exit: ε, or None for the model's own.
        max_new_tokens: at least 1.
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that tokens are sampled from.
        seed: of sampling.
    """

    select_ratios: list[float] | None = None
    early_exit: float | None = None
    max_new_tokens: int = 100
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Refuse impossible numbers.

        Raises:
            UserError: names the option of the command.
        """
        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens must be at least 1, not {self.max_new_tokens}")
        if self.temperature != 0 and not LOWEST_TEMPERATURE <= self.temperature < float("inf"):
            raise UserError(
                f"--temperature must be 0 or at least {LOWEST_TEMPERATURE}, not {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p must lie above 0 and not above 1, not {self.top_p}")

    def sampling(self) -> dict[str, Any]:
        """Return the settings of transformers' `generate`."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        sampled = {"do_sample": True, "top_k": 0}
        return {**sampled, "temperature": self.temperature, "top_p": self.top_p}
