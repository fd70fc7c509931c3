"""Recipes: what is merged over what, what is refused, and in which words."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from itt_composer.basics.errors import UserError
from itt_composer.recipe.schema import load_recipe, recipe_as_yaml

REPOSITORY = Path(__file__).parents[2]
LAUNCHABLE = sorted((REPOSITORY / "yamls/pretrain").glob("*.yaml"))
QUICKSTART = REPOSITORY / "yamls/pretrain/quickstart.yaml"


@pytest.fixture
def quickstart(tmp_path):
    """The quickstart recipe in a copy of `yamls/` that a test may damage."""
    return shutil.copytree(REPOSITORY / "yamls", tmp_path / "yamls") / "pretrain/quickstart.yaml"


def add(file, text):
    file.write_text(file.read_text() + text)


def refusal(recipe, *overrides):
    """The one sentence with which a recipe is refused."""
    with pytest.raises(UserError) as caught:
        load_recipe(recipe, overrides)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("file", LAUNCHABLE, ids=lambda file: file.stem)
def test_resolved_recipe_loads_as_the_same_recipe(file, tmp_path):
    recipe = load_recipe(file)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(recipe_as_yaml(recipe))
    again = load_recipe(resolved)
    assert recipe_as_yaml(again) == resolved.read_text()
    assert again.resolved_thinking() == recipe.resolved_thinking()
    given_otherwise = {"parts", "thinking"}
    assert again.model_dump(exclude=given_otherwise) == recipe.model_dump(exclude=given_otherwise)


def test_resolved_recipe_shows_what_was_implied():
    overrides = ["model.num_hidden_layers=5"]
    values = yaml.safe_load(recipe_as_yaml(load_recipe(QUICKSTART, overrides)))
    assert values["thinking"]["thinking_layers"] == [1, 3]
    assert values["thinking"]["router_norm"] == "sigmoid"
    assert values["algorithms"]["capacity_annealing"]["duration"] == "0.1dur"
    assert values["loggers"]["json_lines"]["path"] == "runs/quickstart/itt_x4/metrics.jsonl"


def test_command_line_wins_over_recipe_and_recipe_over_part(quickstart):
    in_part = load_recipe(quickstart)
    assert in_part.model.vocab_size not in (3000, 4000)
    add(quickstart, "model:\n  hidden_size: 64\n  vocab_size: 3000\n")
    recipe = load_recipe(quickstart, ["model.vocab_size=4000", "seed=5"])
    assert (recipe.model.hidden_size, recipe.model.vocab_size, recipe.seed) == (64, 4000, 5)
    assert recipe.model.intermediate_size == in_part.model.intermediate_size


def test_parts_are_found_beside_the_file_that_names_them(quickstart, monkeypatch):
    monkeypatch.chdir(quickstart.parents[2])
    from_elsewhere = load_recipe(quickstart.relative_to(quickstart.parents[2]))
    monkeypatch.chdir(quickstart.parent)
    assert load_recipe(quickstart.name) == from_elsewhere


def test_a_part_swapped_on_the_command_line_is_found_from_the_current_folder(
    quickstart, monkeypatch
):
    monkeypatch.chdir(quickstart.parents[1])
    swapped = load_recipe(quickstart, ["parts.model=models/llama_162m.yaml"])
    assert swapped.model.hidden_size == 1024
    # What only the replaced part said is gone with it, and later layers still win.
    thinking = ["parts.thinking=thinking/dense.yaml", "parts.model=models/llama_162m.yaml"]
    dense = load_recipe(quickstart, [*thinking, "model.vocab_size=2048"])
    assert dense.resolved_thinking().thinking == "dense"
    assert "capacity_annealing" not in dense.algorithms.named()
    assert dense.model.vocab_size == 2048


def test_null_takes_a_component_out():
    named = load_recipe(QUICKSTART).algorithms.named()
    left = load_recipe(QUICKSTART, ["algorithms.capacity_annealing=null"]).algorithms.named()
    assert set(named) - set(left) == {"capacity_annealing"}
    assert left


def test_a_component_is_swapped_for_another():
    overrides = ["loggers.json_lines=null", "loggers.tensorboard={flush_interval: 7}"]
    recipe = load_recipe(QUICKSTART, overrides)
    assert list(recipe.loggers.named()) == ["tensorboard"]
    assert recipe.loggers.tensorboard.flush_interval == 7


def test_interpolations_follow_the_merged_values():
    recipe = load_recipe(QUICKSTART, ["run_name=other", "run_folder=out/${run_name}"])
    assert recipe.run_folder == "out/other"
    assert recipe.loggers.json_lines.path == "out/other/metrics.jsonl"


MISTAKES = {
    # Keys that are not known, at every depth.
    "sed=1": "unknown key sed; did you mean seed?",
    "banana=1": "unknown key banana; known are: parts, run_name,",
    "model.hiden_size=64": "unknown key model.hiden_size; did you mean model.hidden_size?",
    "thinking.steps=3": "unknown key thinking.steps; did you mean thinking.thinking_steps?",
    "optimizer.decoupled_adamw.l_r=1": "did you mean optimizer.decoupled_adamw.lr?",
    "optimizer.sgd={lr: 1}": "unknown key optimizer.sgd; known are: decoupled_adamw",
    "callbacks.lr_monitors={}": "did you mean callbacks.lr_monitor?",
    "parts.modle=x.yaml": "unknown key parts.modle; did you mean parts.model?",
    "model.hidden-size=64": "unknown key model.hidden-size; did you mean model.hidden_size?",
    "run-name=x": "unknown key run-name; did you mean run_name?",
    "parts=5": "parts must be a mapping of model, thinking, data, train to files",
    "seed=9999999999": "should be less than 2147483648",
    "train.eval_batches=0": "0 would leave nothing to go by",
    "algorithms.capacity_annealing.duration=2dur": "is longer than training",
    "scheduler.cosine_with_warmup.t_warmup=2dur": "is longer than training",
    "scheduler.cosine_with_warmup.t_warmup=5000sp": "has another unit than train.max_duration=",
    "algorithms.capacity_annealing.duration=9e12tok": "is longer than training",
    "algorithms.capacity_annealing.duration=1ep": "cannot be in epochs, which are counted when",
    "callbacks.console_lines.interval=1ep": "cannot be in epochs, which are counted when",
    "run_name=2024": "run_name: YAML reads it as 2024, not as text; put quotes around",
    "data.domains={foo-bar: 0}": "data.domains.foo-bar=0: input should be greater than 0",
    "train.max_duration=0ba": "should be a positive time",
    "train.max_duration=0.5dur": "is itself what shares of training refer to",
    "algorithms.capacity_annealing.duration=0.0dur": "should be a positive time",
    "optimizer.decoupled_adamw.lr=.inf": "should be a finite number",
    "data.domains={}": "names no domain",
    "run_name=": "run_name is empty (null); give it a value, or leave it out",
    "model.hidden_size=null": "model.hidden_size is empty (null); give it a value",
    "data.local=2024": "data.local: YAML reads it as 2024, not as text; put quotes around",
    "data.tokenizer=no": "data.tokenizer: YAML reads it as false, not as text; put quotes around",
    # Only what is really near is suggested.
    "callbacks.optimizer_monitor={}": "callbacks.optimizer_monitor; known are: console_lines, dom",
    "scheduler.cosine_with_warmup.t_warmup=5": "should be a time such as 500ba or 2e9tok, or a",
    "train.precision=amp_bf16": "needs a GPU; on a CPU set train.precision to fp32",
    "train.microbatch_size=auto": "needs a GPU; on a CPU set train.microbatch_size to a number",
    "1=1": "unknown key 1; known are: parts, run_name,",
    # Values of the wrong type or outside their range.
    "seed=x": 'seed="x": input should be a valid integer',
    "model=5": "model=5: input should be a mapping",
    "model.hidden_size=1.5": "model.hidden_size=1.5: input should be a valid integer",
    "model.hidden_size=0": "model.hidden_size=0: input should be greater than or equal to 1",
    "thinking.thinking_layers=[a]": 'thinking.thinking_layers="a": input should be a valid int',
    "optimizer.decoupled_adamw.lr=0": "optimizer.decoupled_adamw.lr=0: input should be greater",
    "data.domains={code: 0}": "data.domains.code=0: input should be greater than 0",
    "train.precision=fp8": "train.precision=\"fp8\": input should be 'fp32' or 'amp_bf16'",
    "train.microbatch_size=0": 'train.microbatch_size=0: should be a positive integer or "auto"',
    "train.max_duration=9steps": 'train.max_duration="9steps": should be a positive time such',
    "train.max_duration=700": "train.max_duration=700: should be a positive time such as 500ba",
    "run_name=a b": "run_name=\"a b\": may hold letters, digits, '.', '_' and '-' only",
    "model.num_attention_heads=3": " does not split into 3 heads of even size",
    "model.head_dim=15": "head_dim=15 must be even: positions rotate pairs",
    "data.cache_limit=1gb": "cache_limit=1gb needs remote: without it, local is not a cache",
    "model.num_key_value_heads=3": "is not a multiple of num_key_value_heads=3",
    # Texts that are not settings.
    "model.hidden_size": "'model.hidden_size' is not of the form key=value",
    "=3": "'=3' is not of the form key=value",
    "thinking.select_ratios=[0.5": "thinking.select_ratios=[0.5: broken YAML: expected ',' or ']'",
    "run_folder=s3://bucket/run": "s3://bucket/run is an address, and checkpoints are kept in a",
    "run_folder=${nope}/x": "run_folder: Interpolation key 'nope' not found",
    "parts.model=${nope}.yaml": "parts.model: Interpolation key 'nope' not found",
    "parts.model=nope.yaml": "parts.model names nope.yaml, which is not there",
    # Settings that contradict each other.
    "thinking.thinking_layers=[1,99]": "thinking.thinking_layers names layer 99",
    "thinking.thinking_steps=1": "thinking.thinking_steps must be at least 2",
    "thinking.select_ratios=[0.5]": "thinking.select_ratios has 1 value, but",
    "thinking.select_ratios=[0.5,0.5,0]": "lower thinking.thinking_steps instead",
    "optimizer.decoupled_adamw=null": "optimizer must name one component, not 0",
    "scheduler.cosine_with_warmup=null": "scheduler must name one component, not 0",
    "data.seq_len=9999": "data.seq_len=9999 is longer than model.max_position_embeddings=",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_on_the_command_line_is_reported_in_one_sentence(override):
    sentence = refusal(QUICKSTART, override)
    assert sentence.startswith("command line: ")
    assert MISTAKES[override] in sentence


def test_a_mistake_in_a_part_names_the_part(quickstart):
    part = quickstart.parents[1] / "models/tiny.yaml"
    add(part, "  rope_thetta: 5\n")
    assert refusal(quickstart) == (
        f"{part}: unknown key model.rope_thetta; did you mean model.rope_theta?"
    )


def test_a_mistake_names_the_last_source_that_set_the_value(quickstart):
    add(quickstart.parents[1] / "models/tiny.yaml", "  rope_theta: -1\n")
    add(quickstart, "model:\n  rope_theta: -2\n")
    assert refusal(quickstart).startswith(f"{quickstart}: model.rope_theta=-2")
    assert refusal(quickstart, "model.rope_theta=-3").startswith(
        "command line: model.rope_theta=-3"
    )


CONTRADICTIONS = {
    "thinking.thinking_steps=3": "thinking.select_ratios has 3 values, but thinking_steps=3 needs",
    "thinking.thinking=dense": "thinking.thinking_steps=4 has no meaning with thinking='dense'",
    "model.num_hidden_layers=2": "thinking.thinking_layers names layer 3, but the model has layers",
    "model.num_attention_heads=3": "model.hidden_size=128 does not split into 3 heads",
    "model.max_position_embeddings=16": "data.seq_len=128 is longer than model.max_position_emb",
    "train.compile=true": "algorithms.capacity_annealing.levels=33: with train.compile every level",
    "train.max_duration=5ba": "scheduler.cosine_with_warmup.t_warmup=9ba is longer than training",
}


@pytest.mark.parametrize("override", CONTRADICTIONS)
def test_of_settings_that_contradict_each_other_the_one_typed_last_is_blamed(override, quickstart):
    """The other ones stand in files."""
    add(
        quickstart,
        "thinking: {thinking_layers: [1, 3]}\n"
        "scheduler: {cosine_with_warmup: {t_warmup: 9ba}}\n"
        "algorithms: {capacity_annealing: {levels: 33, duration: 1ba}}\n",
    )
    load_recipe(quickstart)
    lines = [f"command line: {override}: {CONTRADICTIONS[override]}"]
    assert refusal(quickstart, override).startswith(*lines)


def test_of_settings_in_several_files_the_one_that_is_merged_last_is_blamed(quickstart):
    add(quickstart, "thinking: {thinking_steps: 3}\n")
    assert refusal(quickstart).startswith(
        f"{quickstart}: thinking.thinking_steps=3: thinking.select_ratios has 3 values"
    )


def test_every_mistake_of_a_recipe_is_reported_on_a_line_of_its_own():
    with pytest.raises(UserError) as caught:
        load_recipe(QUICKSTART, ["sed=1", "model.hidden_size=x"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert any("sed" in line for line in lines)
    assert any("model.hidden_size" in line for line in lines)


def test_contradictions_are_reported_all_at_once_and_so_are_missing_parts(quickstart):
    contradictions = {
        "thinking.select_ratios=[0.5]": "select_ratios has 1 value, but",
        "train.precision=amp_bf16": "needs a GPU",
        "train.microbatch_size=auto": "needs a GPU",
        "data.seq_len=9999": "is longer than model.max_position_embeddings=",
        "scheduler.cosine_with_warmup.t_warmup=2dur": "is longer than training",
        "optimizer.decoupled_adamw=null": "optimizer must name one component",
    }
    with pytest.raises(UserError) as caught:
        load_recipe(quickstart, list(contradictions))
    lines = str(caught.value).splitlines()
    assert len(lines) == len(contradictions)
    for override, words in contradictions.items():
        key = override.partition("=")[0].removesuffix(".decoupled_adamw")
        assert any(f"command line: {key}" in line and words in line for line in lines), override
    missing = ["parts.model=no.yaml", "parts.data=none.yaml"]
    with pytest.raises(UserError) as caught:
        load_recipe(quickstart, missing)
    assert [line.split(", which")[0] for line in str(caught.value).splitlines()] == [
        f"command line: {part.replace('=', ' names ')}" for part in missing
    ]


@pytest.mark.parametrize("line", ["run_name: quickstart_itt_x4\n", "  train: ../train/cpu.yaml\n"])
def test_a_required_key_that_nothing_sets_is_named(quickstart, line):
    quickstart.write_text(quickstart.read_text().replace(line, ""))
    with pytest.raises(UserError) as caught:
        load_recipe(quickstart)
    key = "run_name" if "run_name" in line else "train"
    advice = f"set it there, or give {key}=… on the command line"
    assert f"{quickstart}: {key} is missing; {advice}" in str(caught.value).splitlines()


def test_a_recipe_without_name_and_folder_lacks_its_name(quickstart):
    lines = quickstart.read_text().splitlines()
    quickstart.write_text("\n".join(line for line in lines if not line.startswith("run_")))
    assert refusal(quickstart).startswith(f"{quickstart}: run_name is missing; set it there")


def test_a_missing_part_is_named_with_the_file_that_wants_it(quickstart):
    (quickstart.parents[1] / "models/tiny.yaml").unlink()
    sentence = refusal(quickstart)
    assert sentence.startswith(f"{quickstart}: parts.model names ")
    assert sentence.endswith("models/tiny.yaml, which is not there")


@pytest.mark.parametrize("value", ["!!binary aGk=", '"\\uDCFF"'])
def test_a_value_that_is_no_text_at_all_is_refused(quickstart, value):
    add(quickstart, f"init_from: {value}\n")
    assert refusal(quickstart).startswith(f"{quickstart}: a value is neither text nor number: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed: 1\nmodel: [1\nb: 2\n", "line 3, column 2: broken YAML: "),
        (b"seed: 1\nseed: 2\n", "line 2, column 1: broken YAML: found duplicate key seed"),
        (b"run_name: ${oops\n", "broken YAML: "),
        (b"- a\n- b\n", "must hold `key: value` lines, not a list"),
        (b"5\n", "must hold `key: value` lines, not a list or a single value"),
        (b"run_name: \xff\xfe\n", "is not a text file in UTF-8"),
    ],
    ids=["syntax", "duplicate", "interpolation", "list", "number", "encoding"],
)
def test_a_file_that_is_no_recipe_is_reported_with_its_name(tmp_path, content, words):
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    sentence = refusal(file)
    assert sentence.startswith(f"{file}: ")
    assert words in sentence


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    assert refusal(tmp_path / "no.yaml") == f"{tmp_path / 'no.yaml'}: there is no such file"
    assert refusal(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"


def test_annealing_without_a_router_is_refused_and_the_way_out_works():
    without_router = ["thinking.adaptive_routing=false", "thinking.select_ratios=null"]
    sentence = refusal(QUICKSTART, *without_router)
    assert sentence.startswith("command line: thinking.adaptive_routing=false: ")
    assert "algorithms.capacity_annealing needs a router" in sentence
    way_out = "algorithms.capacity_annealing=null"
    assert sentence.endswith(f"set {way_out}")
    load_recipe(QUICKSTART, [*without_router, way_out])


@pytest.mark.parametrize("levels", ["continuous", "33"])
def test_more_levels_than_compiled_variants_are_refused(levels):
    override = f"algorithms.capacity_annealing.levels={levels}"
    load_recipe(QUICKSTART, [override])
    sentence = refusal(QUICKSTART, override, "train.compile=true")
    assert f"{override}: with train.compile every level is a compilation" in sentence


def test_a_number_in_quotes_is_a_name():
    assert load_recipe(QUICKSTART, ['run_name="2024"']).run_name == "2024"


def test_checking_input_loads_no_torch():
    code = f"""
import sys
from itt_composer.recipe.schema import load_recipe, recipe_as_yaml
recipe_as_yaml(load_recipe({str(QUICKSTART)!r}))
import itt_composer.train, itt_composer.cli.quickstart
import eval.suite, eval.__main__, data_prep.__main__
print(*{{"torch", "composer", "transformers", "streaming"}} & set(sys.modules))
"""
    assert subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY).split() == []


def test_a_domain_set_to_null_is_left_out():
    recipe = load_recipe(QUICKSTART.with_name("llama_162m.yaml"), ["data.domains.c4=null"])
    assert "c4" not in recipe.data.domains
    assert recipe.data.domains["cc"] == 0.67
