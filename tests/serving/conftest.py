"""Folders of small random models, and a server of one."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from causal_models import GEOMETRY
from running_server import serving

from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.calibration import calibrate

SIZES = GEOMETRY | {"vocab_size": 512}
TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'cook' %}"
    "{{ raise_exception('no cooks') }}{% endif %}"
    "{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
)


@pytest.fixture(scope="session")
def folders(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`itt` (with a chat template), `bare` (without that and thresholds), `dense` (long)."""
    root = tmp_path_factory.mktemp("served")
    kinds = {
        "itt": {"thinking_steps": 3, "select_ratios": [0.5, 0.5]},
        "bare": {"thinking_steps": 3, "select_ratios": [1.0, 0.0]},
        "dense": {"thinking": "dense"},
    }
    for name, thinking in kinds.items():
        torch.manual_seed(0)
        sizes = SIZES | ({"max_position_embeddings": 50_000} if name == "dense" else {})
        model = IttForCausalLM(IttConfig(**sizes, **thinking)).eval()
        if name == "itt":
            rows = torch.randint(3, 512, (8, 32))
            calibrate(model, [{"input_ids": rows, "attention_mask": torch.ones_like(rows)}])
        model.save_pretrained(root / name)
        shutil.copytree(shards / "tokenizer", root / name, dirs_exist_ok=True)
    file = root / "itt/tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | {"chat_template": TEMPLATE}))
    return root


@pytest.fixture(scope="session")
def server(folders: Path) -> Iterator[str]:
    """The address of a server of `itt`."""
    with serving(folders / "itt") as (address, _):
        yield address


@pytest.fixture(scope="session")
def client(server: str) -> openai.OpenAI:
    """OpenAI's client of that server."""
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
