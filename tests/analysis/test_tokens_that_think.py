"""Which tokens think: figures against plain loops and by hand, kinds of tokens, the command."""

import json
import math

import pytest
import torch
from refusals import assert_refused
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from itt_composer.analysis.rows import (
    document_beginning,
    first_document,
    open_shards,
    validation_batches,
)
from itt_composer.analysis.thinking import (
    BINS,
    StepTotals,
    step_encodings,
    texts_of,
    think_about,
    thinking_steps,
    watched_norms,
)
from itt_composer.analysis.token_classes import TOKEN_KINDS, TokenClasses, rare_and_frequent
from itt_composer.cli.analyse import app
from itt_composer.data.stored_rows import StoredRows
from itt_composer.models import IttForCausalLM

TEXT = "def add_up(x1, y):\n    return x1 + 2024  # naïve 😀, isn't\n"


def test_overlap_complement_and_union_by_hand():
    first = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]]).bool()
    second = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]]).bool()
    weights = torch.tensor([[0.91, 0.11, 0.51, 0.31], [0.0, 1.0, 0.51, 0.71]])
    is_kind = torch.zeros(len(TOKEN_KINDS), 2, 4, dtype=torch.bool)
    is_kind[TOKEN_KINDS.index("digit"), 0] = True
    totals = StepTotals((0.0, 1.0))
    for row in range(2):  # in two batches
        rows = slice(row, row + 1)
        totals.add(second[rows], weights[rows], first[rows], is_kind[:, rows])
    figures = totals.summary(1, 2)
    expected = {"share": 3 / 8, "overlap": 2 / 3, "complement": 1 / 3, "union": 5 / 8}
    mean = weights.mean().item()
    squares = [(weight - mean) ** 2 for weight in weights.flatten().tolist()]
    expected["weight_mean"], expected["weight_std"] = mean, math.sqrt(sum(squares) / 8)
    expected["selected_weight_mean"] = (0.91 + 0.51 + 1.0) / 3
    for name, value in expected.items():
        assert getattr(figures, name) == pytest.approx(value), name
    assert figures.classes["digit"].given() == {"tokens": 4, "share": 0.5}
    assert figures.classes["rare"].given() == {"tokens": 0, "share": None}
    counts = figures.histogram.counts
    expected = dict.fromkeys(range(BINS), 0) | {0: 1, 5: 1, 15: 1, 25: 2, 35: 1, 45: 1, 49: 1}
    assert dict(enumerate(counts)) == expected
    assert sum(counts) == 8
    assert sum(figures.histogram.selected_counts) == 3
    edges = figures.histogram.edges
    assert (len(edges), edges[0], edges[-1]) == (BINS + 1, 0.0, 1.0)


def test_a_step_without_tokens_or_router_has_no_figures_for_them():
    none = torch.zeros(1, 3, dtype=torch.bool)
    totals = StepTotals(None)
    totals.add(none, None, none, torch.zeros(len(TOKEN_KINDS), 1, 3, dtype=torch.bool))
    figures = totals.summary(1, 2)
    assert (figures.share, figures.union) == (0.0, 0.0)
    missing = ("weight_mean", "selected_weight_mean", "histogram", "overlap", "complement")
    assert {getattr(figures, name) for name in missing} == {None}


@pytest.mark.parametrize("kind", ["itt", "loop"])
def test_figures_of_a_model_are_those_of_plain_loops(runs, tokenizer, shards, kind):
    model = IttForCausalLM.from_pretrained(runs[kind] / "model").eval()
    if kind == "itt":
        model.set_router_selection("top_k")
    batches = validation_batches(shards, 12, 5)
    assert [len(batch["input_ids"]) for batch in batches] == [5, 5, 2]
    steps = thinking_steps(model, tokenizer, batches)
    assert [(step.layer, step.step) for step in steps] == [
        (1, step) for step in range(1, model.config.thinking_steps)
    ]
    seen = {}
    for batch in batches:
        for row in batch["input_ids"]:
            for step in think_about(model, tokenizer, "row", row.tolist()).steps:
                whole = seen.setdefault(step.step, {"selected": [], "weights": []})
                whole["selected"] += step.selected
                whole["weights"] += step.weights or []
    for step in steps:
        own, before = seen[step.step], seen.get(step.step - 1)
        total = len(own["selected"])
        assert total == 12 * 32
        assert step.share == sum(own["selected"]) / total
        if own["weights"]:
            assert step.weight_mean == pytest.approx(sum(own["weights"]) / total, abs=1e-5)
            pairs = zip(own["weights"], own["selected"], strict=True)
            taken = [weight for weight, selected in pairs if selected]
            expected = sum(taken) / len(taken)
            assert step.selected_weight_mean == pytest.approx(expected, abs=1e-5)
            assert sum(step.histogram.counts) == total
        if before:
            pairs = list(zip(own["selected"], before["selected"], strict=True))
            again = sum(a and b for a, b in pairs)
            assert step.overlap == again / sum(own["selected"])
            assert step.complement == pytest.approx(1 - step.overlap)
            assert step.union == sum(a or b for a, b in pairs) / total
        by_text = [step.classes[kind].tokens for kind in TOKEN_KINDS[:5]]
        assert 0 < sum(by_text) <= total
    ids = torch.cat([batch["input_ids"].flatten() for batch in batches])
    specials = sum(int((ids == special).sum()) for special in (1, 2))
    assert total - specials - 20 < sum(by_text) <= total - specials


def test_kinds_of_the_tokens_of_a_text(tokenizer):
    """By a tokenizer that was trained on real text; pieces are joined to words by hand."""
    check_kinds(tokenizer)


def test_kinds_do_not_depend_on_how_a_tokenizer_writes_blanks(shards, tmp_path):
    texts = [str(file) for file in sorted(shards.parent.glob("text/*/all.jsonl"))]
    bpe = ByteLevelBPETokenizer()
    bpe.train(texts, vocab_size=400, special_tokens=["<s>"], show_progress=False)
    bpe.save(str(tmp_path / "tokenizer.json"))
    check_kinds(PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")))


def check_kinds(tokenizer):
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    counts = torch.bincount(torch.tensor(ids), minlength=600)
    is_kind = TokenClasses(tokenizer, counts).of(torch.tensor([ids]))[:, 0]
    before, words, found = "", [], dict.fromkeys(TOKEN_KINDS, "")
    for place, text in enumerate(texts_of(tokenizer, ids)):
        kinds = [
            kind for kind, is_one in zip(TOKEN_KINDS[:5], is_kind[:5, place], strict=True) if is_one
        ]
        bare = text.strip()
        if not text or not bare.isascii():  # bytes, or what they end in
            before = "ï"
            continue
        assert len(kinds) == 1, text
        found[kinds[0]] += bare
        if kinds[0] == "word begin":
            assert text[0].isspace() or not text[0].isalnum() or not before[-1:].isalnum(), text
            words.append(bare)
        elif kinds[0] == "word inside":
            assert before[-1:].isalnum(), text
            words[-1] += bare
        before = text
    assert words[:4] == ["def", "add", "up", "x"]
    assert "return" in words
    assert set(found["digit"]) <= set("0124")
    assert not set(found["punctuation"]) - set("(),:_+#'")
    assert found["whitespace"] == ""
    assert is_kind[TOKEN_KINDS.index("whitespace")].any()
    rare, frequent = is_kind[TOKEN_KINDS.index("rare")], is_kind[TOKEN_KINDS.index("frequent")]
    is_most = torch.tensor(ids) == counts.argmax()
    assert frequent[is_most].all()
    assert not rare[is_most].any()
    assert rare.any()


def test_rare_and_frequent_tokens_by_hand():
    counts = torch.tensor([0, 40, 1, 30, 5, 20, 4])
    is_rare, is_frequent = rare_and_frequent(counts)
    assert is_frequent.nonzero().flatten().tolist() == [1, 3]
    assert is_rare.nonzero().flatten().tolist() == [2, 4, 6]


@pytest.mark.parametrize("kind", ["itt", "dense"])
def test_norms_of_states_are_those_of_plain_loops(runs, tokenizer, shards, kind):
    model = IttForCausalLM.from_pretrained(runs[kind] / "model").eval()
    batches = validation_batches(shards, 5, 3)
    with watched_norms(model) as norms:
        thinking_steps(model, tokenizer, batches)
    last = []
    model.model.norm.register_forward_pre_hook(lambda module, inputs: last.append(inputs[0]))
    expected = {layer: [] for layer in range(len(model.model.layers))}
    for batch in batches:
        with torch.no_grad():
            out = model.model(input_ids=batch["input_ids"], output_hidden_states=True)
        for layer, state_BSD in enumerate([*out.hidden_states[1:-1], last[-1]]):
            for row in state_BSD:
                expected[layer] += [math.sqrt(sum(x * x for x in token)) for token in row.tolist()]
    assert norms == pytest.approx({one: sum(of) / len(of) for one, of in expected.items()})
    assert not model.model.layers[0]._forward_hooks


def test_step_encodings_are_summarised_value_by_value(runs):
    model = IttForCausalLM.from_pretrained(runs["itt"] / "model")
    with torch.no_grad():
        model.thinking_layers[0].step_encoding[2] = torch.arange(32.0)
    found = step_encodings(model)
    assert [(each.layer, each.step) for each in found] == [(1, step) for step in range(4)]
    first = {"layer": 1, "step": 0, "mean": 1.0, "std": 0.0, "min": 1.0, "max": 1.0}
    assert found[0].given() == first
    deviation = math.sqrt((32**2 - 1) / 12)
    assert found[2].given() == {"layer": 1, "step": 2, "mean": 15.5, "min": 0.0, "max": 31.0} | {
        "std": pytest.approx(deviation)
    }
    assert step_encodings(IttForCausalLM.from_pretrained(runs["loop"] / "model")) == []


def test_a_document_ends_where_the_next_begins(shards):
    manifest = open_shards(shards)
    name, ids = document_beginning(shards, manifest, 500)
    assert name == "first validation document of prose"
    row = StoredRows(shards / "validation/prose")[0]["input_ids"].tolist()
    assert ids == row[: len(ids)]
    assert ids[0] == manifest.bos_id
    assert manifest.bos_id not in ids[1:]
    assert document_beginning(shards, manifest, 7)[1] == row[:7]
    assert first_document([1, 5, 6, 2, 1, 7, 2, 1], bos=1, eos=2) == [1, 5, 6, 2]
    assert first_document([5, 6, 2, 7, 2], bos=None, eos=2) == [5, 6, 2]
    assert first_document([1, 5], bos=1, eos=2) == [1, 5]
    assert first_document([5, 6], bos=None, eos=2) == [5, 6]


def invoke(*arguments):
    return CliRunner().invoke(app, ["tokens", *(str(argument) for argument in arguments)])


@pytest.mark.parametrize("kind", ["itt", "loop", "dense"])
def test_the_command_writes_what_was_agreed_into_the_run_folder(runs, tmp_path, kind):
    run = runs[kind]
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    result = invoke(run, "--rows", 6, "--text", text)
    assert result.exit_code == 0, result.output
    written = json.loads((run / "analysis/thinking.json").read_text())
    assert (written["kind"], written["format"]) == ("thinking", 1)
    assert len(written["model_sha256"]) == 64
    assert written["data"] | {"folder": ""} == {
        "folder": "",
        "split": "validation",
        "rows": 6,
        "tokens": 6 * 32,
    }
    assert written["router_selection"] == ("top_k" if kind == "itt" else None)
    document, own = written["texts"]
    assert (document["name"], own["name"]) == ("first validation document of prose", str(text))
    assert own["tokens"][0] == "<s>"
    assert "".join(own["tokens"][1:]) == TEXT
    steps = [(step["layer"], step["step"]) for step in written["steps"]]
    assert steps == {"itt": [(1, 1), (1, 2), (1, 3)], "loop": [(1, 1), (1, 2)], "dense": []}[kind]
    for step, shown in zip(written["steps"], own["steps"], strict=True):
        assert set(step["classes"]) == set(TOKEN_KINDS)
        assert (shown["layer"], shown["step"]) == (step["layer"], step["step"])
        assert len(shown["selected"]) == len(own["tokens"])
        assert (step["overlap"] is None) == (step["step"] == 1)
        for value in (shown["weights"], step["histogram"], step["weight_mean"]):
            assert (value is None) == (kind == "loop")
    if kind == "itt":
        # ρ of the first step, of this text's tokens.
        assert sum(own["steps"][0]["selected"]) == math.ceil(0.5 * len(own["tokens"]))
        assert [step["share"] for step in written["steps"]] == [0.5, 23 / 32, 10 / 32]
        assert "Thinking Step Encoding" in result.stdout
    if kind == "dense":
        assert "the model takes no thinking steps" in result.stdout


def test_other_ratios_and_thresholds_are_put_in_force(runs, shards, tmp_path):
    output = tmp_path / "out.json"
    options = ("--select-ratios", "1,0,0.25", "--router-selection", "threshold", "--rows", 6)
    result = invoke(
        runs["itt"] / "model", *options, "--data", shards, "--output", output, "--text", __file__
    )
    assert result.exit_code == 0, result.output
    written = json.loads(output.read_text())
    assert (written["router_selection"], written["select_ratios"]) == ("threshold", [1, 0, 0.25])
    first, last = written["steps"]
    assert (first["step"], first["share"], first["overlap"]) == (1, 1.0, None)
    assert (last["step"], last["overlap"], last["union"]) == (3, 1.0, 1.0)
    assert len(written["texts"][1]["tokens"]) == 128  # the model's positions


def test_a_transformers_model_without_steps_gives_its_texts_alone(tokenizer, shards, tmp_path):
    """A BLOOM, whose positions have no end, and a text whose name is not UTF-8."""
    config = BloomConfig(hidden_size=16, n_layer=1, n_head=2, vocab_size=512)
    BloomForCausalLM(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    output, text = tmp_path / "out.json", tmp_path / "na\udcefve.txt"
    text.write_text(TEXT, encoding="utf-8")
    options = ("--data", shards, "--rows", 2, "--output", output, "--text", text)
    result = invoke(tmp_path / "m", *options)
    assert result.exit_code == 0, result.output
    written = json.loads(output.read_text())
    assert (written["steps"], written["step_encodings"]) == ([], [])
    assert [text["steps"] for text in written["texts"]] == [[], []]
    assert written["texts"][1]["name"].endswith("na?ve.txt")
    assert "".join(written["texts"][1]["tokens"][1:]) == TEXT
    model = BloomForCausalLM.from_pretrained(tmp_path / "m")
    own = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert think_about(model, own, "x", [1, 40]).tokens[0] == "<s>"


def test_a_mistake_is_reported_in_one_sentence(runs, shards, tmp_path):
    run, output = runs["itt"], ("--output", tmp_path / "out.json")
    assert_refused(
        invoke(run / "model", *output), "is not a run folder (it has no recipe.yaml): give --data"
    )
    assert_refused(
        invoke(run, "--select-ratios", "1,2"), "select_ratios=[1.0, 2.0]: select_ratios has 2"
    )
    assert_refused(
        invoke(run, "--router-selection", "best"), "router_selection=best: router_selection must"
    )
    assert_refused(invoke(runs["dense"], "--select-ratios", "1"), "needs an ITT model, not a LLaMA")
    assert_refused(invoke(run, "--data", tmp_path), "has no manifest.json")
    assert_refused(invoke(run, "--text", tmp_path / "no.txt"), "cannot use ")
    (tmp_path / "empty.txt").write_text(" \n")
    assert_refused(invoke(run, "--text", tmp_path / "empty.txt"), "empty.txt holds no text")
    (tmp_path / "latin.txt").write_bytes(b"na\xefve")
    assert_refused(invoke(run, "--text", tmp_path / "latin.txt"), "latin.txt is not UTF-8 text")
    moved = tmp_path / "run"
    moved.mkdir()
    recipe = "{run_name: run, model: {}, thinking: {}, train: {}, data: {local: runs/shards}}"
    (moved / "recipe.yaml").write_text(recipe)
    assert_refused(
        invoke(moved), "names the shards in runs/shards, which does not exist: start from the "
    )
    (moved / "recipe.yaml").write_text(recipe.replace("local: runs/shards", ""))
    assert_refused(invoke(moved), "recipe.yaml names no data.local; is it damaged?")
    (moved / "recipe.yaml").write_text("data: {}")
    assert_refused(
        invoke(moved), "recipe.yaml does not hold the recipe of a run; name another folder"
    )
