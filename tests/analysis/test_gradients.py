"""Gradient nuclear norms against a naive computation, easy and hard problems, the command."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import assert_refused
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2TokenizerFast,
    GPTBigCodeConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)
from typer.testing import CliRunner

from itt_composer.analysis.gradients import (
    FineTuning,
    analyse_gradients,
    answer,
    encode_all,
    fine_tune,
    norms_summary,
    problem_nuclear_norms,
)
from itt_composer.analysis.problems import EncodedProblem, read_problems
from itt_composer.analysis.tables import gradient_tables
from itt_composer.basics.errors import UserError
from itt_composer.cli.analyse import app
from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.projections import attention_projections, nuclear_norm
from itt_composer.results.base import read_result
from itt_composer.results.gradients import GradientResults

SHARED_DATA = Path(os.environ.get("ITT_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "initializer_range": 0.15,
}


def llama_weights(model, layer):
    attention = model.model.layers[layer].self_attn
    return [getattr(attention, f"{name}_proj").weight.grad.numpy() for name in ("q", "k", "v", "o")]


def opt_weights(model, layer):
    attention = model.model.decoder.layers[layer].self_attn
    modules = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    return [module.weight.grad.numpy() for module in modules]


def gpt2_weights(model, layer):
    attention = model.transformer.h[layer].attn
    fused = attention.c_attn.weight.grad.numpy()
    parts = [fused[:, start : start + 64] for start in (0, 64, 128)]
    return [*parts, attention.c_proj.weight.grad.numpy()]


def neox_weights(model, layer):
    return weights_by_head(model.gpt_neox.layers[layer].attention)


def bloom_weights(model, layer):
    return weights_by_head(model.transformer.h[layer].self_attention)


def phi_weights(model, layer):
    attention = model.model.layers[layer].self_attn
    modules = (attention.q_proj, attention.k_proj, attention.v_proj, attention.dense)
    return [module.weight.grad.numpy() for module in modules]


def weights_by_head(attention):
    """Each head has its queries, its keys and its values, 16 rows each."""
    fused = attention.query_key_value.weight.grad.numpy()
    parts = [
        np.concatenate([fused[48 * head + start : 48 * head + start + 16] for head in range(4)])
        for start in (0, 16, 32)
    ]
    return [*parts, attention.dense.weight.grad.numpy()]


def neox():
    settings = {"intermediate_size": 48, "num_attention_heads": 4, "hidden_size": 64}
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=96, num_hidden_layers=2, initializer_range=0.15, **settings)
    )


def opt():
    sizes = {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 48, "init_std": 0.15}
    config = OPTConfig(vocab_size=96, num_hidden_layers=2, num_attention_heads=4, **sizes)
    return OPTForCausalLM(config)


def bloom():
    config = BloomConfig(vocab_size=96, hidden_size=64, n_layer=2, n_head=4, initializer_range=0.15)
    return BloomForCausalLM(config)


def bart():
    """It keeps its attention to an encoder, which there is none of."""
    sizes = {"d_model": 64, "decoder_ffn_dim": 48, "decoder_layers": 2, "init_std": 0.15}
    return BartForCausalLM(BartConfig(vocab_size=96, decoder_attention_heads=4, **sizes))


def gpt2():
    config = GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, initializer_range=0.15)
    return GPT2LMHeadModel(config)


MODELS = {
    "llama with fewer key heads": (lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)), llama_weights),
    "gpt2": (gpt2, gpt2_weights),
    "gpt_neox": (neox, neox_weights),
    "bloom": (bloom, bloom_weights),
    "opt": (opt, opt_weights),
    "bart": (bart, opt_weights),
    "phi": (lambda: PhiForCausalLM(PhiConfig(**LLAMA)), phi_weights),
    "itt": (lambda: IttForCausalLM(IttConfig(**LLAMA, thinking_steps=3)), llama_weights),
    "loop": (
        lambda: IttForCausalLM(IttConfig(**LLAMA, thinking="loop", thinking_steps=3)),
        llama_weights,
    ),
}


def naive_norms(model, weights_of, problem):
    """Plain autograd, full singular value decompositions in numpy, all in float64."""
    model.zero_grad()
    ids = torch.tensor([problem.row])
    log_probabilities = model(ids, use_cache=False).logits[0].double().log_softmax(dim=-1)
    predicted = range(problem.response_start, len(problem.row))
    loss = -sum(log_probabilities[place - 1, problem.row[place]] for place in predicted)
    (loss / len(predicted)).backward()
    return [
        [np.linalg.svd(weight)[1].sum() for weight in weights_of(model, layer)]
        for layer in range(2)
    ]


@pytest.mark.parametrize("kind", MODELS)
def test_norms_are_those_of_a_naive_computation(kind):
    build, weights_of = MODELS[kind]
    torch.manual_seed(0)
    model = build().double().eval()
    # Few tokens give a gradient of low rank, many a full one.
    problems = [
        EncodedProblem([], 0, torch.randint(3, 96, (length,)).tolist(), response_start=4, lost=0)
        for length in (9, 80)
    ]
    expected = [naive_norms(model, weights_of, problem) for problem in problems]
    norms = problem_nuclear_norms(model, problems)
    assert norms.shape == (2, 2, 4)
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
    assert [p.name for p in attention_projections(model)] == [*"qkvo", *"qkvo"]


def test_a_bound_on_the_rank_changes_nothing():
    torch.manual_seed(0)
    matrix = torch.randn(50, 7, dtype=torch.float64) @ torch.randn(7, 40, dtype=torch.float64)
    exact = np.linalg.svd(matrix.numpy())[1].sum()
    for bound in (None, 7, 12, 40, 10_000):
        assert nuclear_norm(matrix, bound).item() == pytest.approx(exact, rel=1e-12), bound
    assert nuclear_norm(matrix, 3).item() < 0.9 * exact  # a wrong one does
    assert nuclear_norm(torch.zeros(30, 30), 2).item() == 0.0
    assert nuclear_norm(torch.full((3, 3), torch.nan)).isnan()
    assert nuclear_norm(torch.diag(torch.tensor([3.0, -4.0]))).item() == pytest.approx(7.0)


@pytest.mark.parametrize(
    "config",
    [
        GPTBigCodeConfig(vocab_size=96, n_embd=64, n_layer=1, n_head=4, multi_query=False),
        FalconConfig(vocab_size=96, hidden_size=64, num_hidden_layers=1, num_attention_heads=4),
    ],
)
def test_fused_projections_that_fall_into_other_parts_are_refused(config):
    """They have names of GPT-2's and GPT-NeoX's."""
    with pytest.raises(UserError, match="has no attention projections of a known kind"):
        attention_projections(AutoModelForCausalLM.from_config(config))


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(UserError, match="Linear has no attention projections of a known kind"):
        attention_projections(torch.nn.Linear(2, 2))


def test_easy_is_what_is_answered_correctly(runs, tokenizer, problems_file):
    """A model learns the problems by heart; then three of them have other answers."""
    model = IttForCausalLM.from_pretrained(runs["dense"] / "model")
    learnt = read_problems(problems_file)
    turned = [
        problem.model_copy(update={"correct": "ABC"["BCA".index(problem.correct)]})
        for problem in learnt[:3]
    ]
    fine_tuning = FineTuning(problems=8, epochs=20, learning_rate=1e-2, batch_size=4)
    result = analyse_gradients(model, tokenizer, [*learnt, *turned, *learnt[3:]], fine_tuning)
    assert result.easy.problems == 5
    assert result.hard.problems == 3
    assert result.problems.accuracy == pytest.approx(5 / 8)
    assert result.problems.chance == pytest.approx(1 / 3)
    assert result.problems.answered == {"A": 3, "B": 3, "C": 2}
    assert result.problems.correct == {"A": 3, "B": 3, "C": 2}
    losses = result.problems.given()["fine_tuning_losses"]
    assert losses[-1] < 0.5
    assert len(losses) == 20
    # The model, fine-tuned now, on each group by itself.
    for group, asked in (("easy", learnt[3:]), ("hard", turned)):
        encoded = encode_all(model, tokenizer, asked)
        assert getattr(result, group) == norms_summary(problem_nuclear_norms(model, encoded))
        norms = np.array([naive_norms(model, llama_weights, problem) for problem in encoded])
        for place, name in enumerate("qkvo"):
            mean, deviation = norms[:, :, place].mean(axis=0), norms[:, :, place].std(axis=0)
            np.testing.assert_allclose(getattr(result, group).mean[name][:2], mean, rtol=1e-3)
            np.testing.assert_allclose(getattr(result, group).std[name][:2], deviation, rtol=2e-2)
    assert result.hard.mean["o"][1] > result.easy.mean["o"][1]


@pytest.mark.parametrize("kind", ["itt", "dense"])
def test_the_likeliest_option_is_the_answer(runs, tokenizer, problems_file, kind):
    model = IttForCausalLM.from_pretrained(runs[kind] / "model").eval()
    if kind == "itt":
        model.set_router_selection("top_k")  # looks ahead: rows must not be padded
    generator = torch.Generator().manual_seed(0)
    encoded = []
    for problem in encode_all(model, tokenizer, read_problems(problems_file)):
        assert [tokenizer.decode(letter).strip() for _, letter in problem.choices] == list("ABC")
        # Letters are one token each here; of other tokenizers they may be several.
        longer = [
            (context, torch.randint(3, 512, (2,), generator=generator).tolist())
            for context, _ in problem.choices
        ]
        encoded += [problem, replace(problem, choices=longer)]
    expected = []
    for problem in encoded:
        likelihoods = []
        for context, tokens in problem.choices:
            with torch.no_grad():
                row = torch.tensor([context + tokens[:-1]])
                logits = model(row, use_cache=False).logits[0].log_softmax(dim=-1)
            places = list(range(len(context) - 1, row.shape[1]))
            likelihoods.append(logits[places, tokens].sum().item())
        expected.append(int(np.argmax(likelihoods)))
    assert answer(model, encoded) == expected
    assert len(set(expected)) > 1


def test_fine_tuning_learns_nothing_from_no_problems_and_repeats_itself(
    runs, tokenizer, problems_file
):
    weights = []
    for count in (0, 3, 3):
        model = IttForCausalLM.from_pretrained(runs["dense"] / "model")
        encoded = encode_all(model, tokenizer, read_problems(problems_file))[:count]
        before = model.lm_head.weight.detach().clone()
        losses = fine_tune(model, encoded, FineTuning(epochs=2, learning_rate=1e-2))
        assert len(losses) == (2 if count else 0)
        assert torch.equal(before, model.lm_head.weight) == (count == 0)
        assert not model.training
        weights.append(model.lm_head.weight)
    assert torch.equal(weights[1], weights[2])
    assert losses[1] < losses[0]


def test_a_problem_becomes_question_answer_and_rationale(runs, tokenizer, problems_file):
    model = IttForCausalLM.from_pretrained(runs["dense"] / "model")
    problem = read_problems(problems_file)[0]
    (encoded,) = encode_all(model, tokenizer, [problem])
    assert encoded.row[0] == 1
    assert encoded.row[-1] == 2
    text = "Question: 3 + 4?\nOptions: A)7 B)8 C)9\nAnswer: A\nRationale: 3 and 4"
    assert tokenizer.decode(encoded.row, skip_special_tokens=True) == text
    response = tokenizer.decode(encoded.row[encoded.response_start :], skip_special_tokens=True)
    assert response.strip() == "A\nRationale: 3 and 4"
    model.config.max_position_embeddings = 12
    (cut,) = encode_all(model, tokenizer, [problem])
    assert cut.row == encoded.row[-12:]
    assert cut.lost == len(encoded.row) - 12
    assert cut.row[cut.response_start :] == encoded.row[encoded.response_start :][-12:]


@pytest.mark.skipif(not (SHARED_DATA / "aqua").is_dir(), reason="no AQuA: set ITT_SHARED_DATA")
@pytest.mark.parametrize("split", ["dev", "test"])
def test_aqua_is_read(split):
    problems = read_problems(SHARED_DATA / f"aqua/{split}.jsonl")
    assert len(problems) == 254
    assert {len(problem.options) for problem in problems} == {5}
    assert {problem.correct for problem in problems} == set("ABCDE")


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", ["itt", "dense"])
def test_the_command_writes_what_was_agreed_into_the_run_folder(runs, problems_file, kind):
    run = runs[kind]
    options = ("--problems", problems_file, "--fine-tune", 2, "--epochs", 1, "--measure", 5)
    result = invoke("gradients", run, *options)
    assert result.exit_code == 0, result.output
    written = json.loads((run / "analysis/gradients.json").read_text())
    assert (written["kind"], written["format"]) == ("gradients", 1)
    assert (len(written["model_sha256"]), written["trained_batches"]) == (64, 10)
    assert written["problems"]["file"] == str(problems_file)
    assert (written["problems"]["fine_tuned_on"], written["problems"]["measured"]) == (2, 5)
    assert written["projections"] == ["q", "k", "v", "o"]
    assert written["layers"] == [0, 1, 2]
    assert written["thinking_layers"] == ([1] if kind == "itt" else [])
    assert written["easy"]["problems"] + written["hard"]["problems"] == 5
    for group in ("easy", "hard"):
        for figure in ("mean", "std"):
            values = [written[group][figure][name] for name in "qkvo"]
            is_empty = written[group]["problems"] == 0
            assert {len(layers) for layers in values} == {3}
            assert all((value is None) == is_empty for layers in values for value in layers)
    assert "answered correctly (easy)" in result.stdout
    assert "were longer than it takes" not in result.stdout
    result = read_result(run / "analysis/gradients.json", GradientResults, advice="")
    assert result.content() == written
    result.problems.cut, result.problems.fine_tuning_cut = 3, 1
    (table,) = gradient_tables(result, "name")
    assert table.notes[-1].startswith("3 of the 5 and 1 of those that the model was fine-tuned on")
    elsewhere = run.parent / f"{kind}.json"
    result = invoke("gradients", run / "model", *options, "--output", elsewhere)
    assert result.exit_code == 0, result.output
    assert json.loads(elsewhere.read_text()) == written


def test_a_gpt2_with_its_own_tokenizer_is_measured_too(shards, problems_file, tmp_path):
    bpe = ByteLevelBPETokenizer()
    texts = [str(file) for file in sorted(shards.parent.glob("text/*/all.jsonl"))]
    bpe.train(texts, vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    own = GPT2TokenizerFast(tokenizer_object=bpe._tokenizer)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 300}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    for saved in (own, model.to(torch.bfloat16)):
        saved.save_pretrained(tmp_path / "gpt2")
    output = tmp_path / "out.json"
    options = ("--problems", problems_file, "--fine-tune", 2, "--output", output)
    result = invoke("gradients", tmp_path / "gpt2", *options)
    assert result.exit_code == 0, result.output
    written = json.loads(output.read_text())
    assert (written["layers"], written["thinking_layers"]) == ([0, 1], [])
    assert written["problems"]["measured"] == 6
    group = "easy" if written["easy"]["problems"] else "hard"
    assert min(value for layers in written[group]["mean"].values() for value in layers) > 0


MISTAKES = {
    '{"question": "1?"': "line 2: is not JSON",
    '{"question": "1?"}': "line 2: column options is missing",
    '{"question": "1?", "options": ["A)1"], "rationale": "", "correct": "A"}': "column options: ",
    '{"question": "1?", "options": ["A)1", "2"], "rationale": "", "correct": "A"}': (
        "line 2: the option '2' does not begin with its letter"
    ),
    '{"question": "1?", "options": ["A)1", "A)2"], "rationale": "", "correct": "A"}': (
        "line 2: two options have the same letter"
    ),
    '{"question": "1?", "options": ["A)1", "B)2"], "rationale": "", "correct": "C"}': (
        "line 2: correct='C' is not the letter of an option"
    ),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_line_that_is_no_problem_is_reported_with_its_number(runs, problems_file, tmp_path, line):
    file = tmp_path / "problems.jsonl"
    file.write_text(problems_file.read_text().splitlines()[0] + "\n" + line + "\n")
    assert_refused(invoke("gradients", runs["dense"], "--problems", file), MISTAKES[line])


def test_a_mistake_is_reported_in_one_sentence(runs, problems_file, tmp_path):
    run, given = runs["dense"], ("--problems", problems_file)
    assert_refused(
        invoke("gradients", run, *given), "there are 8 problems, and 100 of them are for fine-tu"
    )
    assert_refused(
        invoke("gradients", run, *given, "--learning-rate", -1), "must be a positive number, not"
    )
    diverging = ("--fine-tune", 2, "--learning-rate", 1e30)
    assert_refused(
        invoke("gradients", run, *given, *diverging), "fine-tuning diverged in epoch 2: the lo"
    )
    assert_refused(
        invoke("gradients", run, "--problems", "no.jsonl"), "cannot use no.jsonl: No such file"
    )
    assert_refused(
        invoke("gradients", run, "--problems", "no.txt"), "no.txt is not a file of JSON lines"
    )
    assert_refused(
        invoke("gradients", run / "model", *given), "is not a run folder (it has no recipe.yaml)"
    )
    output = ("--output", tmp_path / "out.json")
    assert_refused(
        invoke("gradients", tmp_path / "no", *given, *output),
        "no is not there; name a run",
    )
    assert_refused(invoke("gradients", run, run, *given, *output), "--output is for one model")
    assert_refused(
        invoke("gradients", run, *given, "--output", tmp_path), "is not a JSON file; name one, like"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("weight", "sentence", "commands"),
    [
        (torch.nan, "model.embed_tokens.weight holds NaN or infinity", ("gradients", "tokens")),
        (3e38, "broken are not finite (NaN or infinite), as those of a model that", ("gradients",)),
    ],
)
def test_results_that_are_not_finite_are_reported_and_not_written(
    runs, problems_file, tmp_path, weight, sentence, commands
):
    run = tmp_path / "broken"
    shutil.copytree(runs["dense"], run, ignore=shutil.ignore_patterns("analysis"))
    model = IttForCausalLM.from_pretrained(run / "model")
    torch.nn.init.constant_(model.model.embed_tokens.weight, weight)
    model.save_pretrained(run / "model")
    options = {
        "gradients": ("--problems", problems_file, "--fine-tune", 0, "--measure", 1),
        "tokens": ("--rows", 1),
    }
    for command in commands:
        assert_refused(invoke(command, run, *options[command]), sentence)
    assert not (run / "analysis").exists()


def test_help_comes_before_torch():
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from itt_composer.cli.analyse import app\n"
        "for command in ([], ['gradients'], ['tokens']):\n"
        "    assert CliRunner().invoke(app, [*command, '--help']).exit_code == 0\n"
        "assert 'is not a run folder' in CliRunner().invoke(app, ['tokens', 'x']).stderr\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
