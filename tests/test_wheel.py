"""The wheel in an environment of its own, with its base requirements alone: what `pip` gives."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from itt_composer.models import IttConfig, IttForCausalLM

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).parent / "uv"
LOAD = """\
import sys
import itt_composer
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model.set_select_ratios([0.9, 0.0, 0.1])
print(type(model).__module__, model.has_thresholds)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy: setuptools writes beside the sources."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "itt_composer", source / "itt_composer")
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    out = tmp_path_factory.mktemp("wheel")
    build = [UV, "build", "--quiet", "--wheel", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*build, "--out-dir", out, source], check=True)
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """Runs a command of the environment, far from the repository."""
    place = tmp_path_factory.mktemp("bare")
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, place / "venv"], check=True)
    python = place / "venv" / "bin" / "python"
    same = [f"{name}=={version(name)}" for name in ("torch", "transformers")]
    install = [UV, "pip", "install", "--quiet", "--python", python, wheel, *same]
    # Here, uv reads no pyproject.toml of ours, and never reads what pip is told of its index.
    asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    index = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    known = {"UV_DEFAULT_INDEX": index} | os.environ if index else dict(os.environ)
    done = subprocess.run(
        install, capture_output=True, text=True, cwd=place, env=known, check=False
    )
    if "error sending request" in done.stderr:
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr

    def run(command: str, *arguments, code: int = 0) -> str:
        environment = {name: x for name, x in os.environ.items() if name != "PYTHONPATH"}
        result = subprocess.run(
            [python.parent / command, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=place,
            env=environment,
        )
        assert result.returncode == code, result.stderr
        return result.stdout + result.stderr

    return run


def test_the_wheel_holds_one_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"itt_composer"}
    files = {"py.typed", "report/page/page.html", "data/index.py", "serving/app.py"}
    assert {f"itt_composer/{file}" for file in files} <= set(names)


def test_a_model_runs_on_the_base_requirements_alone(run, shards, small_text, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    config = IttConfig(vocab_size=512, num_hidden_layers=2, max_position_embeddings=64, **sizes)
    IttForCausalLM(config).save_pretrained(tmp_path / "model")
    for file in (shards / "tokenizer").iterdir():
        shutil.copy(file, tmp_path / "model")
    model = str(tmp_path / "model")
    installed = run("python", "-m", "pip", "--version", code=1)  # nothing but what the wheel asks
    assert "No module named pip" in installed
    text = small_text / "text" / "prose" / "all.jsonl"
    calibrated = run("itt", "calibrate", model, "--text", text, "--rows", "32")
    assert "which now routes by them" in calibrated
    assert "class" in run("itt", "generate", model, "--prompt", "class", "--max-new-tokens", "4")
    assert "itt_composer.models.modeling True\n" in run("python", "-c", LOAD, model)
    dense = IttForCausalLM(
        IttConfig(vocab_size=512, num_hidden_layers=2, thinking="dense", **sizes)
    )
    dense.save_pretrained(tmp_path / "dense")
    run("itt", "from-llama", str(tmp_path / "dense"), str(tmp_path / "upcycled"))
    assert (tmp_path / "upcycled" / "model.safetensors").is_file()


def test_a_command_says_which_part_is_missing(run):
    assert "itt-composer[" in run("itt", "report", "runs", code=1)
    for command in ("eval", "convert"):
        said = run("itt", command, "something", code=1)
        assert "part of the repository" in said
        assert "Traceback" not in said
