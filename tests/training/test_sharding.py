"""Several real ranks compute what one process computes, however they share the work."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fork_server import REPOSITORY, free_port
from safetensors.torch import load_file
from small_recipe import RECIPE

from benchmarks import equality
from itt_composer.basics.errors import UserError
from itt_composer.recipe.schema import load_recipe
from itt_composer.runs.checkpoints.places import LATEST
from itt_composer.runs.metrics import read_metrics
from itt_composer.training.before_start import check_sharding

# Float32 rounds sums over ranks and microbatches in another order: about 1e-7 of a loss near 6 is
# one unit in its last place, 5e-7. Adam divides a gradient by its own size, so the rounding of a
# tiny one counts in full: weights, moved by 20 steps of up to 1e-3, differ by some 1e-6.
LOSS_TOLERANCE = 5e-6
WEIGHT_TOLERANCE = 1e-5
NORM_TOLERANCE = 1e-5  # relative
BATCHES = 4
TRAINING = [
    f"train.max_duration={BATCHES}ba",
    f"train.eval_interval={BATCHES}ba",
    "train.save_interval=2ba",
    "train.keep_checkpoints=-1",
    "train.calibration_rows=8",
    "train.microbatch_size=1",
    "algorithms.gradient_clipping.clipping_threshold=0.1",
    "algorithms.capacity_annealing.duration=3ba",
    "algorithms.loss_guard.on_nan=skip",
    "callbacks.domain_shares.interval=1ba",
]


@pytest.fixture(scope="module")
def recipe(shards, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("sharding") / "recipe.yaml"
    file.write_text(RECIPE.replace("local: shards", f"local: {shards}"))
    return file


def arguments(recipe: Path, run: Path, sharding: str) -> list:
    places = [f"run_folder={run}", f"loggers.json_lines.path={run}/metrics.jsonl"]
    return [recipe, *TRAINING, *places, f"train.sharding={sharding}"]


@pytest.fixture(scope="module")
def finished(recipe, fork_server, tmp_path_factory) -> dict[int, Path]:
    """Run folders of one rank and of two that shard, by their number."""
    folders = {}
    for ranks in (1, 2):
        folders[ranks] = tmp_path_factory.mktemp("runs") / "run"
        keys = arguments(recipe, folders[ranks], "fsdp")
        result = fork_server.run("itt_composer.train", *keys, ranks=ranks)
        assert result.returncode == 0, result.stderr
    return folders


def weights(run: Path) -> dict[str, torch.Tensor]:
    saved = load_file(run / "model" / "model.safetensors")
    # Quantiles are measured on other batches on another number of ranks.
    return {name: weight for name, weight in saved.items() if "score_quantiles" not in name}


def assert_same(run: Path, expected: Path, tolerance: float = WEIGHT_TOLERANCE) -> None:
    got = weights(run)
    for name, weight in weights(expected).items():
        torch.testing.assert_close(got[name], weight, rtol=0, atol=tolerance, msg=name)


def half_way(finished: Path, run: Path, sharding: str) -> Path:
    """A copy of a finished run as it was after two batches, by another way of sharding."""
    shutil.copytree(finished, run, symlinks=True)
    shutil.rmtree(run / "model")
    (run / "summary.json").unlink()
    checkpoints = run / "checkpoints"
    for path in checkpoints.glob(f"ep0-ba{BATCHES}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (checkpoints / LATEST).unlink()
    (half,) = checkpoints.iterdir()
    (checkpoints / LATEST).symlink_to(half.name)
    text = (run / "recipe.yaml").read_text().replace(str(finished), str(run))
    (run / "recipe.yaml").write_text(re.sub("sharding: .*", f"sharding: {sharding}", text))
    return run


def test_one_process_ddp_and_fsdp2_train_to_the_same_losses_and_weights(
    fork_server, recipe, tmp_path
):
    files = {world: tmp_path / f"{place}.pt" for place, world in enumerate(equality.WORLDS)}
    for world, (ranks, _) in equality.WORLDS.items():
        options = ["--few", "--world", world, "--out", files[world]]
        result = fork_server.run(Path(equality.__file__), recipe, *options, ranks=ranks)
        assert result.returncode == 0, result.stderr
    differences = equality.compare(files, equality.FEW_CASES)
    print(f"\n{equality.table(differences)}")
    assert len(differences) == 18
    for (case, world), found in differences.items():
        assert found.loss <= LOSS_TOLERANCE, (case, world)
        assert found.gradient_norm <= NORM_TOLERANCE, (case, world)
        assert found.weight <= WEIGHT_TOLERANCE, (case, world)


def test_a_difference_that_is_no_number_counts_as_the_largest():
    assert equality.largest([1.0, torch.tensor(2.0)]) == 2.0
    assert math.isnan(equality.largest([1.0, math.nan, 2.0]))


@pytest.fixture(scope="module")
def seen(recipe, fork_server, tmp_path_factory) -> dict:
    """What two ranks saw of their own sharding; see `sharded_ranks.py`."""
    out = tmp_path_factory.mktemp("seen") / "seen.json"
    script = Path(__file__).with_name("sharded_ranks.py")
    result = fork_server.run(script, recipe, out, ranks=2)
    assert result.returncode == 0, result.stderr
    return json.loads(out.read_bytes())


def test_a_thinking_layer_gathers_its_weights_once_per_pass(seen):
    forward = 2 + 2 + 1  # layers, embeddings, the rest
    backward = 2  # an embedding needs no weights for its gradient, the loss took its own
    assert len(seen["gathers"]) == 4
    for case, gathers in seen["gathers"].items():
        # torch 2.7 keeps the rest from the forward pass, 2.15 gathers it again.
        assert gathers in ([forward, backward], [forward, backward + 1]), case


def test_gradients_are_means_over_the_ranks_and_clipped_by_the_norm_over_all(seen):
    assert seen["clipping"]["difference_before"] < 1e-6
    assert seen["clipping"]["norm"] == pytest.approx(0.05, rel=1e-4)
    assert seen["clipping"]["difference"] < 1e-8


def test_embeddings_that_share_their_weight_are_sharded_too(seen):
    assert seen["tied"]["gradient"] < 1e-6
    assert seen["tied"]["is_whole"]


def test_a_gradient_that_is_broken_in_the_part_of_one_rank_is_skipped_by_all(seen):
    assert seen["skipped"] == {
        "whole": [[True, 0], [True, 0]],
        "broken on rank 1": [[True, 1], [False, 1]],
    }


def test_mixed_precision_is_that_of_one_process_with_all_weights_in_float32(seen):
    types = {name: value for name, value in seen["mixed_precision"].items() if name != "losses"}
    assert types == {
        "gathered": "torch.float32",
        "scores": "torch.float32",
        "kept": "torch.float32",
        "gradient": "torch.float32",
    }
    sharded, plain = seen["mixed_precision"]["losses"]
    assert sharded == pytest.approx(plain, abs=1e-6)


def test_two_sharded_ranks_leave_the_model_of_one(finished):
    assert (finished[2] / "checkpoints" / LATEST).is_dir()
    assert (finished[1] / "checkpoints" / LATEST).is_file()
    assert_same(finished[2], finished[1])
    one, two = (json.loads((finished[n] / "summary.json").read_bytes()) for n in (1, 2))
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], abs=LOSS_TOLERANCE)
    assert two["tokens"] == one["tokens"]


@pytest.mark.parametrize(
    ("before", "ranks", "sharding"),
    [(2, 2, "fsdp"), (2, 1, "fsdp"), (1, 2, "fsdp"), (2, 4, "fsdp"), (2, 2, "ddp")],
)
def test_a_run_goes_on_on_another_number_of_ranks(
    finished, recipe, fork_server, tmp_path, before, ranks, sharding
):
    run = half_way(finished[before], tmp_path / "run", sharding)
    keys = arguments(recipe, run, sharding)
    result = fork_server.run("itt_composer.train", *keys, ranks=ranks)
    assert result.returncode == 0, result.stderr
    is_sharded = ranks > 1 and sharding != "ddp"
    assert (run / "checkpoints" / LATEST).is_dir() == is_sharded
    is_as_before = (ranks, sharding) == (before, "fsdp")
    assert_same(run, finished[before], 0 if is_as_before else WEIGHT_TOLERANCE)
    again, undisturbed = read_metrics(run), read_metrics(finished[before])
    if is_as_before:
        assert again == undisturbed
    for name in ("data/share/code", "data/share/prose"):
        assert [line.get(name) for line in again] == [line.get(name) for line in undisturbed]


def test_a_full_disk_is_reported_and_leaves_no_part_of_a_sharded_checkpoint(
    finished, recipe, fork_server, tmp_path
):
    run = half_way(finished[2], tmp_path / "run", "fsdp")
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    script = Path(__file__).with_name("small_disk.py")
    keys, limit = arguments(recipe, run, "fsdp"), {"LARGEST": "100000"}
    result = fork_server.run(script, *keys, ranks=2, env=limit)
    assert result.returncodes[0] == 1, result.stderr
    assert f"ep0-ba{BATCHES} cannot be saved: File too large; ep0-ba2 is whole" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == kept


def test_hybrid_sharding_within_two_nodes_goes_on_where_two_ranks_were(
    finished, recipe, fork_server, tmp_path
):
    run, port = half_way(finished[2], tmp_path / "run", "hybrid"), free_port()
    keys = arguments(recipe, run, "hybrid")
    places = {"ranks": 2, "nodes": 2, "port": port}
    nodes = [
        fork_server.start("itt_composer.train", *keys, node_rank=node, **places) for node in (0, 1)
    ]
    for node in nodes:
        result = node.wait()
        assert result.returncode == 0, result.stderr
    assert_same(run, finished[2])
    parts = {path.name for path in (run / "checkpoints" / f"ep0-ba{BATCHES}").iterdir()}
    assert parts == {".metadata", "__0_0.distcp", "__1_0.distcp"}  # of the first replica


def test_two_launchers_with_their_own_node_ranks_train_one_model(finished, recipe, tmp_path):
    launcher = Path(sys.executable).with_name("composer")
    meeting = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    run = tmp_path / "run"
    keys = [str(argument) for argument in arguments(recipe, run, "fsdp")]
    nodes = []
    for node in (0, 1):
        place = ["-n", "1", "--world_size", "2", "--node_rank", str(node), "--base_rank", str(node)]
        command = [launcher, *place, *meeting, "-m", "itt_composer.train", *keys]
        with (tmp_path / f"{node}.log").open("w") as log:
            nodes.append(
                subprocess.Popen(
                    command,
                    cwd=REPOSITORY,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    codes = [node.wait(timeout=240) for node in nodes]
    printed = [(tmp_path / f"{node}.log").read_text() for node in (0, 1)]
    assert codes == [0, 0], printed
    assert "2 ranks" in printed[0]
    assert_same(run, finished[2])


@pytest.mark.parametrize(
    ("keys", "ranks", "ranks_per_node", "sentence"),
    [
        ("train.sharding=none", 2, 2, "train.sharding=none is for one rank, but there are 2"),
        ("train.sharding=hybrid", 6, 4, "6 ranks at 4 per node leave nothing to shard or do not"),
        ("train.sharding=hybrid", 4, 1, "4 ranks at 1 per node leave nothing to shard or do not"),
        ("train.microbatch_size=auto", 2, 2, "microbatch_size=auto does not work with train.shar"),
    ],
)
def test_what_a_number_of_ranks_cannot_do_is_one_sentence(
    recipe, keys, ranks, ranks_per_node, sentence
):
    settings = load_recipe(recipe, [keys, "train.device=gpu"]).train
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_sharding(settings, ranks, ranks_per_node)
    check_sharding(settings, 1, 1)
