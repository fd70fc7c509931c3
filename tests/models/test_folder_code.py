"""A folder's own code: computes what the package computes, and runs only where it has to."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import bare_transformers
import pytest
import torch
from transformers import AutoModelForCausalLM

from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.folder import model_card, replace_model, write_model_folder
from itt_composer.models.folder_code import AUTO_MAP, code_files
from itt_composer.models.loading import load_model

HERE = Path(__file__).parent
FILES = {"configuration_itt.py", "modeling_itt.py"}
GEOMETRY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
KINDS = {
    "itt": {"thinking_steps": 3, "tie_word_embeddings": True},
    "loop": {"thinking": "loop", "thinking_steps": 2, "rope_theta": 5e5},
    "dense": {"thinking": "dense"},
}
POISON = "raise SystemExit('the code of the folder was run')\n"


def model_of(kind: str) -> IttForCausalLM:
    torch.manual_seed(0)
    model = IttForCausalLM(IttConfig(**GEOMETRY, **KINDS[kind])).eval()
    for layer in model.thinking_layers if kind == "itt" else ():
        torch.nn.init.normal_(layer.step_encoding, mean=1.0, std=0.3)
        scores = torch.randn(layer.score_quantiles.shape).sort(dim=-1).values
        layer.score_quantiles.copy_(scores)
    return model


def write(folder: Path, kind: str = "itt", with_code: bool = True) -> IttForCausalLM:
    """Write a folder; return what the package loads from it."""
    model = model_of(kind)
    card = model_card(model, "small", "", with_code)
    write_model_folder(folder, model, card, None, with_code)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def run(code: str | Path, *arguments: object) -> str:
    """What a fresh process prints; its environment has a place of its own for folders' code."""
    modules = Path(str(arguments[0])).parent / "hf_modules"
    start = [str(code)] if isinstance(code, Path) else ["-c", code]
    result = subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        env=os.environ | {"HF_MODULES_CACHE": str(modules), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_transformers_alone_computes_the_same_and_saves_the_code_again(tmp_path):
    folders = {kind: tmp_path / f"{kind}-1.5" for kind in KINDS}
    models = {kind: write(folder, kind) for kind, folder in folders.items()}
    run(HERE / "bare_transformers.py", tmp_path / "out", *folders.values())
    for kind, folder in folders.items():
        check_same(models[kind], tmp_path / "out" / folder.name)


def check_same(model: IttForCausalLM, out: Path) -> None:
    """Compare with what the package computes from the same weights, before and after saving."""
    results = torch.load(out / "computed.pt")
    expected = bare_transformers.computed(model)
    expected["states"] = model.model(torch.tensor(bare_transformers.PROMPTS)).last_hidden_state
    assert results.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(results[name], tensor), name
    again = out / "model"
    assert {file.name for file in again.glob("*.py")} == FILES
    assert json.loads((again / "config.json").read_bytes())["auto_map"] == AUTO_MAP
    ours = bare_transformers.computed(AutoModelForCausalLM.from_pretrained(again))
    assert all(torch.equal(ours[name], results[name]) for name in ours)


def test_the_installed_package_comes_before_the_code(tmp_path):
    write(tmp_path / "model")
    for name in FILES:
        (tmp_path / "model" / name).write_text(POISON)
    code = """
import sys
import itt_composer
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
for trusted in ({}, {"trust_remote_code": False}, {"trust_remote_code": True}):
    for auto in (AutoConfig, AutoModel, AutoModelForCausalLM):
        found = auto.from_pretrained(sys.argv[1], **trusted)
        print(type(found).__module__)
found.save_pretrained(sys.argv[2])
"""
    modules = run(code, tmp_path / "model", tmp_path / "saved").split()
    models = "itt_composer.models"
    assert modules == [f"{models}.configuration", *[f"{models}.modeling"] * 2] * 3
    # By a class that has no file of its own beside the weights: none is named either.
    assert "auto_map" not in json.loads((tmp_path / "saved/config.json").read_bytes())


def test_our_loaders_never_run_the_code(tmp_path):
    expected = write(tmp_path / "model")
    for name in FILES:
        (tmp_path / "model" / name).write_text(POISON)
    model = load_model(tmp_path / "model")
    assert type(model) is IttForCausalLM
    ids = torch.tensor(bare_transformers.PROMPTS)
    assert torch.equal(model(ids).logits, expected(ids).logits)


def test_a_changed_model_keeps_the_code_of_its_folder(tmp_path):
    for with_code in (True, False):
        folder = tmp_path / str(with_code)
        model = write(folder, with_code=with_code)
        model.set_select_ratios([0.9, 0.0])
        replace_model(folder, model)
        config = json.loads((folder / "config.json").read_bytes())
        assert config["select_ratios"] == [0.9, 0.0]
        assert config.get("auto_map") == (AUTO_MAP if with_code else None)
        assert {file.name for file in folder.glob("*.py")} == (FILES if with_code else set())
        assert ("trust_remote_code=True" in (folder / "README.md").read_text()) is with_code


def test_the_files_are_always_the_same_and_import_nothing_but_torch_and_transformers():
    files = code_files()
    assert files.keys() == FILES
    code = "from itt_composer.models.folder_code import code_files as f; print(repr(f()))"
    assert ast.literal_eval(run(code, HERE)) == files
    for text in files.values():
        assert text.startswith("# Copyright")
        assert "Apache License, Version 2.0" in text
        roots = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0 or node.module == "configuration_itt"
                roots |= set() if node.level else {node.module.partition(".")[0]}
        assert roots - sys.stdlib_module_names <= {"torch", "transformers"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"thinking_layers": [1]}, "layer 1 thinks up to 4 steps"),
        ({"thinking_layers": [1, 3]}, "layers 1, 3 think up to 4 steps"),
        ({"thinking": "loop", "thinking_layers": [0]}, "layer 0 is applied 4 times"),
        ({"thinking": "loop", "thinking_layers": [0, 1]}, "layers 0, 1 are applied 4 times"),
    ],
)
def test_the_card_counts_the_layers(settings, sentence):
    with torch.device("meta"):
        model = IttForCausalLM(IttConfig(**GEOMETRY, **settings))
    assert f": {sentence}" in model_card(model, "small", "")
