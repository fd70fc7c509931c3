"""Training through its command line: real shards, real processes, real checkpoints."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fork_server import Result
from safetensors.torch import load_file

from itt_composer.basics.errors import UserError
from itt_composer.training.before_start import check_before_start
from itt_composer.training.train import device_of
from itt_composer.training.training_run import TrainingRun

REPOSITORY = Path(__file__).parents[2]
RECIPE = "yamls/pretrain/quickstart.yaml"
LAUNCHER = Path(sys.executable).with_name("composer")
BATCHES = 8
TINY = [
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=2",
    "data.num_workers=0",
    f"train.max_duration={BATCHES}ba",
    "train.eval_interval=4ba",
    "train.eval_batches=2",
    "train.save_interval=2ba",
    "callbacks.console_lines.interval=2ba",
]


@pytest.fixture(scope="module")
def tiny(shards) -> list[str]:
    """Overrides that turn the quickstart's recipe into one of seconds, on the test's shards."""
    manifest = json.loads((shards / "manifest.json").read_bytes())
    return [
        *TINY,
        f"data.local={shards}",
        f"data.seq_len={manifest['seq_len']}",
        f"model.vocab_size={manifest['vocab_size']}",
    ]


@pytest.fixture(scope="module")
def call(fork_server):
    """Run the command line: arguments → what it returned and printed."""

    def run(*arguments: str, ranks: int = 1) -> Result:
        return fork_server.run("itt_composer.train", *arguments, ranks=ranks)

    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def finished(call, tiny, tmp_path_factory) -> tuple[Path, str]:
    """The folder of an undisturbed run, and what it printed."""
    run = tmp_path_factory.mktemp("train") / "run"
    result = call(RECIPE, *tiny, f"run_folder={run}")
    assert result.returncode == 0, result.stderr
    return run, result.stdout


def test_a_run_leaves_recipe_checkpoints_metrics_model_and_summary(finished):
    run, printed = finished
    assert (run / "recipe.yaml").is_file()
    assert (run / "checkpoints" / "latest-rank0.pt").exists()
    assert {"config.json", "model.safetensors", "tokenizer.model"} <= {
        path.name for path in (run / "model").iterdir()
    }
    summary = json.loads((run / "summary.json").read_bytes())
    assert summary["batches"] == BATCHES
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/train/total"] for line in lines if "loss/train/total" in line]
    assert len(losses) == BATCHES
    assert losses[-1] < losses[0]
    assert "batch 8 · 100 % · loss" in printed
    assert "batch 8 · validation loss" in printed


def test_the_same_command_again_does_nothing(call, finished, tiny):
    run, _ = finished
    before = (run / "model" / "model.safetensors").stat().st_mtime_ns
    result = call(RECIPE, *tiny, f"run_folder={run}")
    assert result.returncode == 0
    assert "nothing to do" in result.stdout
    assert (run / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_killed_after_its_last_checkpoint_still_gets_its_model(call, finished, tiny):
    run, _ = finished
    before, summary = weights(run), json.loads((run / "summary.json").read_bytes())
    shutil.rmtree(run / "model")
    (run / "summary.json").unlink()
    result = call(RECIPE, *tiny, f"run_folder={run}")
    assert result.returncode == 0, result.stderr
    again = json.loads((run / "summary.json").read_bytes())
    assert again["tokens"] == summary["tokens"]
    assert again["validation_loss"] == pytest.approx(summary["validation_loss"], rel=1e-6)
    assert all(torch.equal(weight, weights(run)[name]) for name, weight in before.items())


def shares(run):
    """The last realised domain shares that a run logged."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    logged = [{k: v for k, v in line.items() if k.startswith("data/share/")} for line in lines]
    return [line for line in logged if line][-1]


def test_two_ranks_train_to_the_weights_of_one(call, finished, tiny, tmp_path):
    run = tmp_path / "run"
    result = call(RECIPE, *tiny, f"run_folder={run}", ranks=2)
    assert result.returncode == 0, result.stderr
    assert "2 ranks" in result.stdout
    one, two = weights(finished[0]), weights(run)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=2e-4, msg=name)
    assert shares(finished[0]) == shares(run) != {}


def test_a_mistake_is_one_sentence_for_all_ranks():
    """Under Composer's own launcher, as users start it."""
    command = [LAUNCHER, "-n", "2", "-m", "itt_composer.train", RECIPE, "model.hiden_size=64"]
    result = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300
    )
    sentence = "command line: unknown key model.hiden_size; did you mean model.hidden_size?"
    assert result.returncode != 0
    assert (result.stdout + result.stderr).count(sentence) == 1
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([RECIPE, "data.local=no/such"], "data folder no/such is not there"),
        (["no_such.yaml"], "no_such.yaml: there is no such file"),
        ([RECIPE, "train.global_batch_size=abc"], "train.global_batch_size="),
    ],
)
def test_other_mistakes_end_without_a_traceback(call, arguments, sentence):
    result = call(*arguments)
    assert result.returncode == 1
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "ranks", "ranks_per_node", "sentence"),
    [
        (["data.num_canonical_nodes=3"], 1, 1, "nodes=3 does not fit train.global_batch_size=4 on"),
        (
            ["data.num_canonical_nodes=4", "train.global_batch_size=12"],
            *(
                3,
                1,
                "data.num_canonical_nodes=4 does not fit train.global_batch_size=12 on 3 nodes",
            ),
        ),
        ([], 3, 3, "train.global_batch_size=4 does not split over 3 ranks; change one"),
        (["train.global_batch_size=6"], 3, 3, "train.eval_batch_size=4 does not split over 3 r"),
        (["data.num_canonical_nodes=4"], 2, 1, None),
        (["data.num_canonical_nodes=2"], 4, 1, None),
    ],
)
def test_batches_that_do_not_split_over_ranks_and_nodes_are_reported_before_the_start(
    small_recipe, monkeypatch, overrides, ranks, ranks_per_node, sentence
):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks_per_node))
    recipe = small_recipe(*overrides)
    if sentence is None:
        return check_before_start(recipe, TrainingRun(recipe))
    with pytest.raises(UserError, match=sentence):
        check_before_start(recipe, TrainingRun(recipe))


def test_a_run_that_begins_does_not_append_to_the_log_of_another(small_recipe, tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"batch": 1}\n')
    recipe = small_recipe(f"loggers.json_lines.path={log}")
    run = TrainingRun(recipe)
    with pytest.raises(UserError, match=r"metrics\.jsonl holds the metrics of another run"):
        check_before_start(recipe, run)
    run.check_writable()
    run.write_recipe()  # a run that was killed before its first checkpoint goes on with its log
    check_before_start(recipe, run)


def test_shards_and_ranks_that_do_not_fit_are_reported_together(small_recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    misfits = ("data.seq_len=16", "model.vocab_size=100", "data.domains={wiki: 1, books: 1}")
    recipe = small_recipe(*misfits, "init_from=nowhere", "data.num_canonical_nodes=3")
    with pytest.raises(UserError) as caught:
        check_before_start(recipe, TrainingRun(recipe))
    sentences = str(caught.value).splitlines()
    words = [
        *("init_from=nowhere is not a tr", "rows of 32 tokens", "tokenizer of 512 ids"),
        *("no training rows of the domains 'wiki', 'books'", "data.num_canonical_nodes=3 does not"),
        *("train.global_batch_size=4 does not split", "train.eval_batch_size=4 does not split"),
    ]
    assert len(sentences) == len(words)
    assert all(word in line for word, line in zip(words, sentences, strict=True))
    assert sum(line.startswith(f"data.local={recipe.data.local}: ") for line in sentences) == 3


GPU_ONLY = [("precision", "amp_bf16"), ("microbatch_size", "auto")]


def test_the_device_is_what_the_recipe_asks_for_or_what_there_is(small_recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(small_recipe("train.device=null")) == device_of(small_recipe()) == "cpu"
    with pytest.raises(UserError, match=r"^train\.device=gpu, but torch finds no GPU here"):
        device_of(small_recipe("train.device=gpu"))
    for key, value in GPU_ONLY:
        with pytest.raises(UserError, match=rf"^train\.{key}={value} needs a GPU; on a CPU set"):
            device_of(small_recipe("train.device=null", f"train.{key}={value}"))
    both = [f"train.{key}={value}" for key, value in GPU_ONLY]
    with pytest.raises(UserError, match=r"precision=amp_bf16 .*\n.*microbatch_size=auto "):
        device_of(small_recipe("train.device=null", *both))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for key, value in GPU_ONLY:
        assert device_of(small_recipe("train.device=null", f"train.{key}={value}")) == "gpu"
    assert device_of(small_recipe()) == "cpu"


def test_print_config_shows_the_resolved_recipe(call, tiny):
    result = call(RECIPE, *tiny, "--print-config")
    assert result.returncode == 0
    assert "hidden_size: 32" in result.stdout
    assert "thinking_layers:\n  - 1\n" in result.stdout
