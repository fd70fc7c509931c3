"""Every command that takes a model: files that ask for code or for the hub end it, unfollowed.

All values are harmless: they name nothing. A server in the hub's place records what is asked of it,
and a package in the place of `kernels` whether anything imports it.
"""

import json
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from causal_models import GEOMETRY
from small_recipe import RECIPE

from itt_composer.basics.errors import UserError
from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.loading import load_model
from itt_composer.models.tokenizer import load_tokenizer

NOTHING = "no-owner/no-name"
CASES = {
    "attention": ("config.json", {"_attn_implementation_internal": NOTHING}),
    "part": ("config.json", {"part": {"attn_implementation": NOTHING}}),
    "generation": ("generation_config.json", {"custom_generate": NOTHING}),
    "tokenizer": ("tokenizer_config.json", {"trust_remote_code": True}),
    "adapter": ("adapter_config.json", {"base_model_name_or_path": NOTHING}),
}
COMMANDS = {
    "eval": ["eval", "eval/suites/perplexity.yaml", "model={model}", "data={shards}"],
    "tasks": ["eval", "eval/suites/eleven_tasks.yaml", "model={model}"],
    "generate": ["generate", "{model}", "--prompt", "x"],
    "serve": ["serve", "{model}"],
    "from-llama": ["from-llama", "{model}", "{out}"],
    "calibrate": ["calibrate", "{model}", "--data", "{shards}"],
    "tokens": ["analyse", "tokens", "{model}", "--data", "{shards}", "--output", "{out}.json"],
    "gradients": [
        "analyse",
        "gradients",
        "{model}",
        "--problems",
        "{problems}",
        "--output",
        "{out}.json",
    ],
    "init_from": [
        "train",
        "{recipe}",
        "data.local={shards}",
        "run_folder={out}",
        "init_from={model}",
    ],
}
ASKED = [(case, "generate") for case in CASES]
ASKED += [(case, command) for command in COMMANDS for case in ("attention", "tokenizer")]


class Recording(BaseHTTPRequestHandler):
    """Records what it is asked for, and has nothing."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET

    def log_message(self, format, *arguments):
        """Nothing."""


@pytest.fixture
def hub():
    """A server in the hub's place: its address, and what was asked of it."""
    handler = type("Handler", (Recording,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(hub, tmp_path, shards):
    """Run a command with the two stand-ins; return its result and what was fetched or imported."""
    packages, imported = tmp_path / "packages", tmp_path / "imported"
    (packages / "kernels").mkdir(parents=True)
    (packages / "kernels/__init__.py").write_text(
        f"__version__ = '0.10.0'\nopen({str(imported)!r}, 'a').write('kernels ')\n"
    )
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    places = {
        "model": tmp_path / "model",
        "shards": shards,
        "out": tmp_path / "out",
        "recipe": tmp_path / "recipe.yaml",
        "problems": tmp_path / "problems.jsonl",
    }
    problem = {"question": "?", "options": ["A)1", "B)2"], "rationale": "1", "correct": "A"}
    places["problems"].write_text("".join(json.dumps(problem) + "\n" for _ in range(200)))
    address, asked = hub
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(packages),
    }

    def call(*arguments):
        result = subprocess.run(
            [sys.executable, *(argument.format(**places) for argument in arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return result, [*asked, *(imported.read_text().split() if imported.exists() else [])]

    return call


@pytest.fixture
def model(tmp_path, shards):
    """A dense ITT in its folder, as a LLaMA with a tokenizer."""
    torch.manual_seed(0)
    llama = IttForCausalLM(IttConfig(**GEOMETRY | {"vocab_size": 512}, thinking="dense"))
    llama.save_pretrained(tmp_path / "model")
    shutil.copytree(shards / "tokenizer", tmp_path / "model", dirs_exist_ok=True)
    return tmp_path / "model"


def ask_for_more(folder, name, keys):
    """Add keys to a file of a model."""
    file = folder / name
    content = json.loads(file.read_bytes()) if file.exists() else {}
    file.write_text(json.dumps(content | keys))


@pytest.mark.parametrize(("case", "command"), sorted(set(ASKED)))
def test_a_command_ends_with_one_sentence_and_has_fetched_nothing(case, command, model, run):
    ask_for_more(model, *CASES[case])
    result, fetched = run("-m", "itt_composer", *COMMANDS[command])
    name, keys = CASES[case]
    (sentence,) = result.stderr.strip().splitlines()
    assert result.returncode == 1
    assert name in sentence
    assert all(key in sentence for key in keys) or case == "adapter"
    assert fetched == []


def test_export_takes_no_tokenizer_that_asks_for_code(model, run, tmp_path):
    ask_for_more(model, *CASES["tokenizer"])
    result, fetched = run(
        "-m", "itt_composer", "export", "{model}", "{out}", "--tokenizer", str(model)
    )
    assert (result.returncode, fetched) == (1, [])


def test_the_stand_ins_record(model, run):
    result, fetched = run("-m", "itt_composer", "generate", "no-owner/no-name", "--prompt", "x")
    assert result.returncode == 1
    assert any("no-owner/no-name/resolve/main/config.json" in path for path in fetched)
    _, fetched = run("-c", "import kernels")
    assert fetched[-1] == "kernels"


def test_a_good_folder_is_complete_without_the_hub_and_without_kernels(model, run):
    ask_for_more(model, "config.json", {"_attn_implementation": "eager"})
    result, fetched = run("-m", "itt_composer", "generate", "{model}", "--prompt", "x")
    assert result.returncode == 0, result.stderr
    assert fetched == []


@pytest.mark.parametrize("case", CASES)
def test_the_loaders_refuse_it_as_well(case, model):
    ask_for_more(model, *CASES[case])
    name, _ = CASES[case]
    for load in (load_model, load_tokenizer):
        with pytest.raises(UserError, match=name):
            load(model)


def test_a_tokenizer_whose_class_is_code_is_refused(model):
    code = {"tokenizer_class": "NoClassTokenizer", "auto_map": {"AutoTokenizer": ["a.A", "a.B"]}}
    ask_for_more(model, "tokenizer_config.json", code)
    with pytest.raises(UserError, match="its auto_map names code, which is never run"):
        load_tokenizer(model)
