"""Generating text: tokens in and out as in training, shades that are true, mistakes reported."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import sentencepiece
import torch
from refusals import assert_refused
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

from data_prep.tokenizer import load_corpus_tokenizer
from itt_composer.basics.errors import UserError
from itt_composer.cli.generate import app
from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.generation import prompt_ids
from itt_composer.models.text_stream import IncrementalDecoder, StepCounter, TextStream
from itt_composer.models.thresholds import quantiles_of

GEOMETRY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = {
    "dense": {"thinking": "dense"},
    "loop": {"thinking": "loop", "thinking_steps": 3},
    "itt": {"thinking_steps": 4, "select_ratios": [0.7, 0.5, 0.3]},
    "uncalibrated": {"thinking_steps": 3, "select_ratios": [0.7, 0.5]},
}
TEXTS = [
    "",
    "x",
    "  two blanks before, one after ",
    "def f(x):\n\n\tif x:\n        return 2024  # café 😀😀, 你好\n",
    "names of tokens: <s> </s> <unk>",
]


@pytest.fixture(scope="module")
def folders(shards, tmp_path_factory):
    """A transformers folder per kind, random weights with the small tokenizer."""
    root = tmp_path_factory.mktemp("models")
    for kind, settings in KINDS.items():
        torch.manual_seed(0)
        model = IttForCausalLM(IttConfig(**GEOMETRY, **settings)).eval()
        if kind == "itt":
            calibrate(model)
        model.save_pretrained(root / kind)
        shutil.copytree(shards / "tokenizer", root / kind, dirs_exist_ok=True)
    return root


@torch.no_grad()
def calibrate(model):
    """Thresholds of random rows."""
    for layer in model.thinking_layers:
        for step, router in enumerate(layer.routers):

            def keep(module, args, scores, layer=layer, step=step):
                layer.score_quantiles[:, step] = quantiles_of(scores)

            router.register_forward_hook(keep)
    model(torch.randint(3, 512, (8, 32)), use_cache=False)
    for layer in model.thinking_layers:
        for router in layer.routers:
            router._forward_hooks.clear()


@pytest.fixture
def tokenizer(folders):
    return AutoTokenizer.from_pretrained(folders / "itt", local_files_only=True)


def invoke(*arguments, **environment):
    arguments = [str(argument) for argument in arguments]
    return CliRunner(env={"TERM": "xterm", **environment}).invoke(app, arguments)


@pytest.mark.parametrize("text", TEXTS)
def test_text_decoded_token_by_token_is_the_text(tokenizer, text):
    decoder = IncrementalDecoder(tokenizer)
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    pieces = [decoder.push(token_id) for token_id in [1, *ids]]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text
    assert decoder.end() == ""


def test_bytes_that_are_no_character_come_out_too(tokenizer):
    decoder = IncrementalDecoder(tokenizer)
    lone_byte, x = tokenizer.convert_tokens_to_ids(["<0xF0>", "x"])
    assert decoder.push(lone_byte) == ""
    assert decoder.push(x) == "\ufffdx"
    pieces = [decoder.push(lone_byte) for _ in range(20)] + [decoder.end()]
    assert "".join(pieces) == "\ufffd" * 20
    assert sum(map(bool, pieces)) > 1


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_has_the_ids_of_a_training_row(folders, tokenizer, text):
    processor = sentencepiece.SentencePieceProcessor(
        model_file=str(folders / "itt/tokenizer.model")
    )
    assert prompt_ids(IttConfig(max_position_embeddings=512), tokenizer, text) == [
        1,
        *processor.encode(text),
    ]
    with pytest.raises(UserError, match="but the model has 2 ids: it is another model's tokenizer"):
        prompt_ids(IttConfig(max_position_embeddings=512, vocab_size=2), tokenizer, f"x{text}")


def test_without_bos_there_is_nothing_to_begin_with(shards, tmp_path):
    load_corpus_tokenizer(str(shards / "tokenizer"), bos_token="none").save(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    config = IttConfig(max_position_embeddings=512, bos_token_id=None)
    assert prompt_ids(config, tokenizer, "x")[0] != 1
    with pytest.raises(UserError, match="give a prompt"):
        prompt_ids(config, tokenizer, "")


def test_each_token_is_written_with_the_steps_it_took(folders, tokenizer):
    model = IttForCausalLM.from_pretrained(folders / "itt").eval()
    model.set_router_selection("threshold")
    ids = torch.tensor([[1, 40, 300, 41, 350]])
    counter, written = StepCounter(3), []
    stream = TextStream(
        OneLetterEach(),
        counter,
        lambda text, steps: written.append((text, steps)),
        tells_steps=True,
    )
    output = model.generate(
        ids, max_new_tokens=12, min_new_tokens=12, streamer=stream, on_step=counter.on_step
    )
    taken = torch.zeros_like(output)
    by_step = [0, 0, 0]

    def count(done):
        taken.add_(done.is_selected_BS)
        by_step[done.step - 1] += int(done.is_selected_BS[:, :-1].sum())

    model(output, use_cache=False, on_step=count)
    *seen, last, _ = written
    assert [steps for _, steps in seen] == taken[0, :-1].tolist()
    assert "".join(text for text, _ in written) == OneLetterEach().decode(output[0].tolist())
    assert last[1] is None
    assert len(set(taken[0].tolist())) > 2
    assert (counter.tokens, counter.taken) == (output.shape[1] - 1, by_step)


class OneLetterEach:
    """A tokenizer under which every token has text."""

    def decode(self, ids, **kwargs):
        return "".join(chr(0x4E00 + token_id) for token_id in ids)


def test_the_command_prints_what_the_model_continues(folders, tokenizer, tmp_path):
    model = IttForCausalLM.from_pretrained(folders / "itt").eval()
    model.set_router_selection("threshold")
    prompt = "def\tf(x):\n    "
    ids = torch.tensor([prompt_ids(model.config, tokenizer, prompt)])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, select_ratios=[1, 0.5, 0]
    )
    (tmp_path / "prompt.txt").write_text(prompt)
    options = ("--max-new-tokens", 9, "--select-ratios", "1,0.5,0")
    for given in (("--prompt", prompt), ("--prompt-file", tmp_path / "prompt.txt")):
        result = invoke(folders / "itt", *given, *options)
        assert result.exit_code == 0, result.output
        text = tokenizer.decode(output[0], skip_special_tokens=True)
        assert result.stdout == text + "\n"
        assert text.startswith(prompt)
    new, before = output.shape[1] - ids.shape[1], ids.shape[1]
    assert result.stderr.startswith(f"{new} tokens after {before}, ")
    assert re.search(
        r"; [\d.]+ of 6 thinking steps per token; steps at 100/\d+/0 % \(100/50/0 asked\)$",
        result.stderr.strip(),
    )


def test_shades_leave_the_text_as_it_is(folders):
    options = (folders / "itt", "--prompt", "def\tf(x):\n    ", "--max-new-tokens", 8)
    plain = invoke(*options, "--color").stdout
    result = invoke(*options, "--color", FORCE_COLOR="1", COLORTERM="truecolor")
    assert result.exit_code == 0, result.output
    legend, shaded = result.stdout.split("\n", 1)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", shaded) == plain
    assert re.sub(r"\x1b\[[\d;]*m", "", legend).split(":")[1].split(" … ") == [
        f" {' ' * (steps == 0)}{steps} of 6 " for steps in (0, 2, 4, 6)
    ]
    assert len(set(re.findall(r"48;2;[\d;]*m", shaded))) > 2


def test_a_model_without_steps_or_with_all_of_them_is_reported_as_such(folders):
    options = ("--prompt", "x", "--max-new-tokens", 3, "--color")
    dense = invoke(folders / "dense", *options)
    assert dense.exit_code == 0
    assert dense.stderr.startswith("this model takes no thinking steps: there is nothing to shade")
    loop = invoke(folders / "loop", *options)
    assert loop.exit_code == 0
    assert "4.00 of 4 thinking steps per token; steps at 100/100 % (100/100 asked)" in loop.stderr


def test_routers_that_look_ahead_need_thresholds_only_for_parts_of_the_tokens(folders):
    result = invoke(folders / "uncalibrated", "--prompt", "x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no thresholds yet" in result.stderr
    assert "itt calibrate" in result.stderr
    options = ("--prompt", "x", "--select-ratios", "1,0", "--max-new-tokens", 2)
    assert invoke(folders / "uncalibrated", *options).exit_code == 0


def test_sampling_follows_its_seed(folders):
    options = (folders / "dense", "--max-new-tokens", 12, "--temperature", 1, "--seed")
    first, again, other = (invoke(*options, seed).stdout for seed in (3, 3, 4))
    assert first == again != other


def test_generation_stops_where_positions_end(folders):
    ratios = ("--select-ratios", "0,0,0")
    result = invoke(folders / "itt", "--prompt", "1" * 60, "--max-new-tokens", 40, *ratios)
    assert result.exit_code == 0
    assert "stopped: the model has 64 positions\n2 tokens after 62, " in result.stderr


MISTAKES = {
    ("--prompt", "1" * 63): "the prompt has 65 tokens and leaves no room in the model's 64",
    ("--prompt", "x", "--select-ratios", "0.5,0.5"): "--select-ratios 0.5,0.5 cannot be used with",
    ("--prompt", "x", "--select-ratios", "1,1,1.5"): "select_ratios must lie in 0..1, not 1.5",
    ("--prompt", "x", "--select-ratios", "1;1"): "takes numbers with commas between them, not '1;",
    ("--prompt", "x", "--early-exit", "-1"): "--early-exit -1 cannot be used with",
    ("--prompt", "x", "--prompt-file", "y"): "give either --prompt or --prompt-file",
    ("--prompt-file", "nowhere.txt"): "cannot use nowhere.txt: No such file or directory",
    ("--max-new-tokens", "0"): "--max-new-tokens must be at least 1, not 0",
    ("--temperature", "-1"): "--temperature must be 0 or at least 0.001, not -1.0",
    ("--temperature", "1", "--top-p", "0"): "--top-p must lie above 0 and not above 1, not 0.0",
    ("--seed", "1"): "--top-p and --seed are for sampling: give --temperature as well",
}


@pytest.mark.parametrize("options", MISTAKES, ids=" ".join)
def test_a_mistake_is_reported_in_one_sentence(folders, options):
    assert_refused(invoke(folders / "itt", *options), MISTAKES[options])


def test_a_folder_that_cannot_be_used_is_reported_in_one_sentence(folders, tmp_path):
    assert_refused(
        invoke("nowhere", "--prompt", "x"), "nowhere is not a folder or a checkpoint here"
    )
    dense = ("--prompt", "x", "--select-ratios", "0.5")
    assert_refused(
        invoke(folders / "dense", *dense), "takes no thinking steps: leave out --select-ratios"
    )
    (tmp_path / "config.json").write_bytes((folders / "itt/config.json").read_bytes())
    assert_refused(invoke(tmp_path, "--prompt", "x"), f"{tmp_path} has no tokenizer")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert_refused(invoke(tmp_path, "--prompt", "x"), f"error: {tmp_path} cannot be loaded")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "itt", "thinking": "much"}))
    assert_refused(
        invoke(tmp_path, "--prompt", "x"), "config.json is not the configuration of a model: "
    )


@pytest.mark.parametrize("sampled", [(), ("--temperature", "1")])
@pytest.mark.parametrize("value", [torch.inf, 3e38])
def test_logits_that_are_infinite_are_refused(folders, tmp_path, value, sampled):
    shutil.copytree(folders / "dense", tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"][0] = 1e6
    weights["lm_head.weight"][5, 0] = value  # of the two one logit is inf, and the other -inf
    weights["lm_head.weight"][6, 0] = -value
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    result = invoke(tmp_path, "--prompt", "x", *sampled)
    if value == torch.inf:
        assert_refused(result, f"{tmp_path} is of no use: lm_head.weight holds NaN or infinity")
    else:
        assert result.exit_code == 1
        assert "NaN or infinity as logits after 3 tokens, although its" in result.stderr


def test_help_and_mistakes_come_before_torch(folders):
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from itt_composer.cli.generate import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        f"options = [{str(folders / 'itt')!r}, '--select-ratios', '1,1']\n"
        "assert 'select_ratios' in CliRunner().invoke(app, options).stderr\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
