"""What the golden model is asked for, by the script that writes the answers and by the test."""

import torch

# Rows of 14, 9 and 5 tokens, padded on the left.
LENGTHS = (14, 9, 5)
IDS = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
for _row, _length in enumerate(LENGTHS):
    _places = torch.arange(_length)
    IDS[_row, -_length:] = (7 * _places**2 + 11 * _places + 5 * _row) % 61 + 3
MASK = (IDS != 0).long()
NEW_TOKENS = 12
# Options of `generate` by name; the last ones are of one row, which is all that they take.
GENERATIONS = {
    "greedy": {},
    "without a cache": {"use_cache": False},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 0.8},
    "beams": {"num_beams": 3},
    "two of three beams": {"num_beams": 3, "num_return_sequences": 2},
    "more thinking": {"select_ratios": [1.0, 0.9]},
    "no thinking": {"select_ratios": [0.0, 0.0]},
    "early exit": {"early_exit": 0.6},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}
OF_ONE_ROW = ("prompt lookup",)


def generate(model, name: str, **options) -> torch.Tensor:
    """Return the tokens of one of `GENERATIONS`, the prompts included."""
    rows = slice(0, 1) if name in OF_ONE_ROW else slice(None)
    torch.manual_seed(3)
    return model.generate(
        IDS[rows],
        attention_mask=MASK[rows],
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        pad_token_id=0,
        **{"do_sample": False} | GENERATIONS[name] | options,
    )


@torch.no_grad()
def logits_in(model, rule: str) -> torch.Tensor:
    """Return the logits at the real tokens, (N, V), under a rule of selection."""
    before = model.config.router_selection
    model.set_router_selection(rule)
    logits = model(IDS, attention_mask=MASK, use_cache=False).logits[MASK.bool()]
    model.set_router_selection(before)
    return logits


def gradient_norms(model) -> dict[str, torch.Tensor]:
    """Return the norm of each parameter's gradient, of the training loss under top-k."""
    before = model.config.router_selection
    model.set_router_selection("top_k")
    model.zero_grad()
    labels = IDS.where(MASK == 1, -100)
    model(IDS, attention_mask=MASK, labels=labels, use_cache=False).loss.backward()
    model.set_router_selection(before)
    norms = {
        name: weight.grad.norm()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    model.zero_grad()
    return norms
