"""Finished runs in miniature, and problems to answer."""

import json
from pathlib import Path

import causal_models
import pytest
import torch
from small_recipe import RECIPE
from transformers import AutoTokenizer

from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.calibration import calibrate

GEOMETRY = {**causal_models.GEOMETRY, "vocab_size": 512, "max_position_embeddings": 128}
KINDS = {
    "itt": {"thinking_steps": 4, "select_ratios": [0.5, 0.7, 0.3]},
    "loop": {"thinking": "loop", "thinking_steps": 3},
    "dense": {"thinking": "dense"},
}
SUMS = [(3, 4), (5, 2), (9, 1), (2, 2), (6, 5), (7, 7), (8, 0), (1, 4)]


def build(kind):
    torch.manual_seed(0)
    model = IttForCausalLM(IttConfig(**GEOMETRY, **KINDS[kind])).eval()
    if model.config.adaptive_routing:
        rows = torch.randint(3, 512, (8, 32))
        calibrate(model, [{"input_ids": rows, "attention_mask": torch.ones_like(rows)}])
        model.set_router_selection("threshold")  # as training leaves it
    return model


SUMMARY = {
    **{"run_name": "small", "thinking": "itt", "thinking_steps": 3, "parameters": 9},
    **{"batches": 10, "tokens": 1280, "train_seconds": 1.0, "validation_loss": 4.0},
}


@pytest.fixture(scope="session")
def runs(shards: Path, tmp_path_factory) -> dict[str, Path]:
    """A run folder for each kind of model, random weights with the small tokenizer."""
    root = tmp_path_factory.mktemp("runs")
    tokenizer = AutoTokenizer.from_pretrained(shards / "tokenizer", local_files_only=True)
    folders = {}
    for kind in KINDS:
        folders[kind] = root / kind
        build(kind).save_pretrained(root / kind / "model")
        tokenizer.save_pretrained(root / kind / "model")
        recipe = RECIPE.replace("local: shards", f"local: {shards}")
        (root / kind / "recipe.yaml").write_text(recipe)
        (root / kind / "summary.json").write_text(json.dumps(SUMMARY))
    return folders


@pytest.fixture(scope="session")
def tokenizer(shards: Path):
    """The small one, trained on real text."""
    return AutoTokenizer.from_pretrained(shards / "tokenizer", local_files_only=True)


def problem_of(a, b, place):
    options = [a + b + 1, a + b + 2]
    options.insert(place, a + b)
    return {
        "question": f"{a} + {b}?",
        "options": [f"{letter}){value}" for letter, value in zip("ABC", options, strict=True)],
        "rationale": f"{a} and {b}",
        "correct": "ABC"[place],
    }


@pytest.fixture(scope="session")
def problems_file(tmp_path_factory) -> Path:
    """Eight problems with three options each."""
    file = tmp_path_factory.mktemp("problems") / "sums.jsonl"
    lines = [problem_of(a, b, place % 3) for place, (a, b) in enumerate(SUMS)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file
