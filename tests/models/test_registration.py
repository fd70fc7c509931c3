"""`import itt_composer` makes transformers know the model, without loading anything heavy."""

import shutil
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
TOKENIZER_IN_A_FRESH_PROCESS = """
import sys
import itt_composer
from transformers import AutoTokenizer
print(type(AutoTokenizer.from_pretrained(sys.argv[1])).__name__)
"""


def run(code, folder):
    command = [sys.executable, "-c", code, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_auto_classes_load_an_itt_in_a_fresh_process(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    IttForCausalLM(IttConfig(vocab_size=9, num_hidden_layers=2, **sizes)).save_pretrained(tmp_path)
    assert run(FRESH_PROCESS, tmp_path) == ["IttConfig", "IttForCausalLM"]


def test_a_tokenizer_that_names_no_class_is_llamas(tmp_path, shards):
    IttConfig(vocab_size=512).save_pretrained(tmp_path)
    shutil.copy(shards / "tokenizer" / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    (name,) = run(TOKENIZER_IN_A_FRESH_PROCESS, tmp_path)
    assert name in ("LlamaTokenizer", "LlamaTokenizerFast")  # one class from transformers 5 on
