"""Loads exported folders with transformers alone: `python bare_transformers.py OUT FOLDER…`.

This package cannot be imported here, wherever it is installed. OUT gets a folder for each, of its
name, with what the model computed (`computed.pt`, see `computed`) and the model saved again
(`model`).
"""

import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

PACKAGE = "itt_composer"
PROMPTS = [[5, 9, 33, 2, 17, 5, 9, 33, 2], [0, 0, 0, 7, 60, 41, 7, 60, 41]]
RATIOS = ([0.5, 0.5], [1.0, 0.0], [0.9, 0.3])


class Refuse(MetaPathFinder):
    """Stands for an environment where the package is not."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == PACKAGE:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


def computed(model) -> dict:
    """Logits, losses and tokens in the forms that a user asks for them."""
    import torch

    ids = torch.tensor(PROMPTS)
    mask = (ids != 0).long()
    found = {"padded": model(ids, attention_mask=mask).logits}
    with torch.no_grad():
        found["chunks"] = model(ids, labels=ids, loss_chunk_tokens=4).loss
    settings = {"max_new_tokens": 12, "attention_mask": mask, "pad_token_id": 0, "eos_token_id": 61}
    kinds = {
        "cached": {"do_sample": False},
        "uncached": {"do_sample": False, "use_cache": False},
        "beams": {"do_sample": False, "num_beams": 3},
    }
    for name, kind in kinds.items():
        found[name] = model.generate(ids, **settings, **kind)
    found["lookup"] = model.generate(
        ids[:1], max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=2, eos_token_id=61
    )
    torch.manual_seed(3)
    found["sampled"] = model.generate(ids, **settings, do_sample=True)
    if model.config.thinking == "itt":
        before = model.config.select_ratios
        for ratios in RATIOS:
            model.set_select_ratios(ratios)
            found[f"ratios {ratios}"] = model(ids).logits
        model.set_select_ratios(before)
        found["early exit"] = model(ids, early_exit=0.3).logits
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def main(folder: str, out: Path) -> None:
    """Load, compute, save, load again."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    refusal = ""
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        refusal = str(error)
    assert "trust_remote_code=True" in refusal, refusal
    trusted = {"trust_remote_code": True}
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **trusted
    )
    assert not any(report.values()), report
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert not [name for name in sys.modules if name.partition(".")[0] == PACKAGE]
    results = computed(model)
    inner = AutoModel.from_pretrained(folder, **trusted)
    results["states"] = inner(torch.tensor(PROMPTS)).last_hidden_state.detach()
    out.mkdir(parents=True)
    torch.save(results, out / "computed.pt")
    model.save_pretrained(out / "model")
    again = AutoModelForCausalLM.from_pretrained(out / "model", **trusted)
    for name, tensor in computed(again).items():
        assert torch.equal(tensor, results[name]), name


if __name__ == "__main__":
    sys.meta_path.insert(0, Refuse())
    for each in sys.argv[2:]:
        main(each, Path(sys.argv[1]) / Path(each).name)
