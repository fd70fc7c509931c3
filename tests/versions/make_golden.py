"""Trains a small ITT and writes it with what it computes: `python tests/versions/make_golden.py`.

Run it under the oldest releases (`make setup` with the floor's lock): the others are held to it.
"""

from pathlib import Path

import torch
import transformers
from golden_cases import GENERATIONS, IDS, MASK, generate, gradient_norms, logits_in
from safetensors.torch import save_file

from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.calibration import calibrate

FOLDER = Path(__file__).parent / "golden"
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 5e4,
    "pad_token_id": 0,
}
THINKING = {"thinking_steps": 3, "select_ratios": [0.7, 0.4]}


def rows(count: int) -> torch.Tensor:
    """Rows in which each token follows from the two before it, (count, 32)."""
    tokens = torch.randint(3, 64, (count, 2))
    for _ in range(30):
        following = (3 * tokens[:, -1] + 5 * tokens[:, -2]) % 61 + 3
        tokens = torch.cat([tokens, following[:, None]], dim=1)
    return tokens


def main() -> None:
    assert transformers.__version__.startswith("4.57"), "run this under transformers 4.57"
    torch.manual_seed(0)
    model = IttForCausalLM(IttConfig(**SIZES, **THINKING, initializer_range=0.1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(500):
        batch = rows(16)
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"loss {loss.item():.3f} after 500 batches, of {torch.tensor(61.0).log():.3f} at first")
    batches = [rows(16) for _ in range(8)]
    calibrate(
        model.eval(),
        [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in batches],
    )
    model.set_router_selection("threshold")
    model.save_pretrained(FOLDER)
    expected = {f"logits.{rule}": logits_in(model, rule) for rule in ("top_k", "threshold")}
    expected |= {f"gradients.{name}": norm for name, norm in gradient_norms(model).items()}
    expected |= {f"tokens.{name}": generate(model, name) for name in GENERATIONS}
    save_file(
        {name: value.contiguous() for name, value in expected.items()},
        FOLDER / "expected.safetensors",
    )
    print(f"{len(expected)} values of {tuple(IDS.shape)} tokens, {int(MASK.sum())} of them real")


if __name__ == "__main__":
    main()
