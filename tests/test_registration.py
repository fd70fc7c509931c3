"""`import itt_composer` makes transformers know the model, without loading anything heavy."""

import subprocess
import sys

import torch

from itt_composer.models import IttConfig, IttForCausalLM

FRESH_PROCESS = """
import sys
import itt_composer
assert "torch" not in sys.modules and "transformers" not in sys.modules
from transformers import AutoConfig, AutoModelForCausalLM
print(type(AutoConfig.from_pretrained(sys.argv[1])).__name__)
print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)
"""


def test_auto_classes_load_an_itt_in_a_fresh_process(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    IttForCausalLM(IttConfig(vocab_size=9, num_hidden_layers=2, **sizes)).save_pretrained(tmp_path)
    command = [sys.executable, "-c", FRESH_PROCESS, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["IttConfig", "IttForCausalLM"]
