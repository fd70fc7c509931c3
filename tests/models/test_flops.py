"""Both accountings: the paper's figures, and torch's own counter on the real model."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.flops import executed_flops, paper_tflops

SIZES = {
    "162M": {"hidden_size": 1024, "intermediate_size": 2560, "num_key_value_heads": 32},
    "230M": {"hidden_size": 1536, "intermediate_size": 2560, "num_key_value_heads": 16},
    "466M": {"hidden_size": 2048, "intermediate_size": 4096, "num_key_value_heads": 32},
}
# Table 1: LLaMA, Loop×3, Loop×4, ITT×2, ×3, ×4. 230M and 466M agree with one thinking layer.
TABLE_1 = {
    "162M": [1.88, 3.76, 4.70, 2.72, 3.19, 3.29],
    "230M": [2.87, 3.59, 3.95, 3.19, 3.37, 3.41],
    "466M": [4.92, 6.15, 6.77, 5.47, 5.78, 5.84],
}
MODELS = [
    {"thinking": "dense"},
    {"thinking": "loop", "thinking_steps": 3},
    {"thinking": "loop", "thinking_steps": 4},
    {"thinking_steps": 2, "select_ratios": [0.9]},
    {"thinking_steps": 3, "select_ratios": [0.7, 0.7]},
    {"thinking_steps": 4, "select_ratios": [0.5, 0.5, 0.5]},
]
ELASTIC_TABLE = {
    (70, 70, 70): 3.85,
    (90, 90, 90): 4.42,
    (90, 90, 0): 3.57,
    (90, 0, 90): 3.57,
    (0, 90, 90): 3.57,
    (90, 90, 70): 4.23,
    (90, 70, 90): 4.23,
    (70, 70, 90): 4.04,
    (90, 70, 70): 4.04,
    (70, 70, 50): 3.66,
    (70, 50, 70): 3.66,
    (50, 70, 70): 3.66,
    (70, 50, 50): 3.47,
    (50, 50, 70): 3.47,
    (50, 70, 50): 3.47,
    (50, 50, 50): 3.29,
}


def paper_config(label: str, **thinking) -> IttConfig:
    if label != "162M" and thinking.get("thinking") != "dense":
        thinking["thinking_layers"] = [3]
    return IttConfig(num_hidden_layers=8, num_attention_heads=32, **SIZES[label], **thinking)


@pytest.mark.parametrize("label", TABLE_1)
def test_paper_tflops_reproduces_table_1(label):
    figures = [paper_tflops(paper_config(label, **model)) for model in MODELS]
    assert figures == pytest.approx(TABLE_1[label], abs=0.01)


@pytest.mark.parametrize("percent", ELASTIC_TABLE)
def test_paper_tflops_reproduces_the_elastic_table(percent):
    config = paper_config("162M", select_ratios=[share / 100 for share in percent])
    assert paper_tflops(config) == pytest.approx(ELASTIC_TABLE[percent], abs=0.01)


@pytest.mark.parametrize(
    "thinking",
    [
        *MODELS,
        {"select_ratios": [0.9, 0.0, 0.3]},
        {"select_ratios": [1.0, 0.5, 0.2]},
        {"adaptive_routing": False},
        {"reweighting": "symmetric"},
    ],
)
def test_executed_flops_equal_torchs_counter(thinking):
    config = IttConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=72,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",  # torch 2.7 does not count the CPU's fused attention
        **thinking,
    )
    model = IttForCausalLM(config)
    input_ids = torch.randint(0, 50, (3, 21))
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=input_ids, labels=input_ids).loss
    expected = executed_flops(config, batch_size=3, seq_len=21)
    rotary = config.head_dim * 21  # a matrix product in transformers 4 alone; has no gradient
    assert forward.get_total_flops() in (expected, expected - rotary)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert backward.get_total_flops() == 2 * (expected - rotary)
