"""A run resumed anywhere, on any number of real ranks, sees the batches of an undisturbed one."""

import json
import sys
from pathlib import Path

import pytest
from small_recipe import RECIPE

sys.path.insert(0, str(Path(__file__).parent))
from read_batches import read

SCRIPT = Path(__file__).with_name("read_batches.py")
MID = 7  # batches before the interruption
SHARES = "data.domains={code: 2, prose: 3}"


def as_sets(batches):
    """Return the rows of every global batch as sets, whichever rank had which."""
    return [sorted(map(tuple, batch)) for batch in batches]


@pytest.fixture(scope="module")
def recipe(shards, tmp_path_factory):
    file = tmp_path_factory.mktemp("resume") / "recipe.yaml"
    file.write_text(RECIPE.replace("local: shards", f"local: {shards}"))
    return file


@pytest.fixture(scope="module")
def undisturbed(recipe):
    """Two epochs on one rank: all batches, and how many are in an epoch."""
    batches, _ = read(str(recipe), {"overrides": [SHARES], "epochs": 2})
    assert len(batches) % 2 == 0
    return as_sets(batches), len(batches) // 2


@pytest.fixture(scope="module")
def states(recipe, undisturbed):
    """By name, the state of a run on one rank, and the batches it had before."""
    epoch = undisturbed[1]
    stops = {"mid": MID, "boundary": epoch, "second": epoch + MID}
    states = {}
    for name, stop in stops.items():
        task = {"overrides": [SHARES, "data.num_workers=1"], "epochs": 2, "stop": stop}
        states[name] = (read(str(recipe), task)[1], stop)
    return states


@pytest.fixture(scope="module")
def two_ranks(recipe, states, tmp_path_factory, fork_server):
    """What two ranks read: whole, stopped, and resumed from states of one rank."""
    out = tmp_path_factory.mktemp("two")
    tasks = [
        {"name": "whole", "overrides": [SHARES], "epochs": 2},
        {"name": "stopped", "overrides": [SHARES, "data.num_workers=2"], "stop": MID},
    ]
    for workers in (0, 2):
        overrides = [f"data.num_workers={workers}"]
        tasks.append(
            {"name": f"validation{workers}", "split": "validation", "overrides": overrides}
        )
    for name, (state, _) in states.items():
        for workers in (0, 2):
            overrides = [SHARES, f"data.num_workers={workers}"]
            tasks.append(
                {"name": f"{name}{workers}", "overrides": overrides, "epochs": 2, "state": state}
            )
    result = fork_server.run(SCRIPT, recipe, out, json.dumps(tasks), ranks=2)
    assert result.returncode == 0, result.stderr

    def batches(name):
        ranks = [json.loads((out / f"{name}.{rank}.json").read_bytes()) for rank in (0, 1)]
        assert len(ranks[0]) == len(ranks[1])
        return as_sets(first + second for first, second in zip(*ranks, strict=True))

    batches.state = json.loads((out / "stopped.state.json").read_bytes())
    return batches


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("moment", ["mid", "boundary", "second"])
def test_one_rank_goes_on_with_the_batches_it_would_have_had(
    recipe, undisturbed, states, moment, workers
):
    whole, _ = undisturbed
    state, stop = states[moment]
    overrides = [SHARES, f"data.num_workers={workers}"]
    # Resumed at a boundary, the first of the two epochs has nothing left.
    batches, _ = read(str(recipe), {"overrides": overrides, "state": state, "epochs": 2})
    expected = whole[stop:]
    assert as_sets(batches)[: len(expected)] == expected


def test_two_ranks_see_the_global_batches_of_one(two_ranks, undisturbed):
    assert two_ranks("whole") == undisturbed[0]
    assert two_ranks("stopped") == undisturbed[0][:MID]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("moment", ["mid", "boundary", "second"])
def test_two_ranks_go_on_where_one_was(two_ranks, undisturbed, states, moment, workers):
    expected = undisturbed[0][states[moment][1] :]
    assert two_ranks(f"{moment}{workers}")[: len(expected)] == expected


def test_one_rank_goes_on_where_two_were(two_ranks, recipe, undisturbed):
    task = {"overrides": [SHARES], "state": two_ranks.state, "epochs": 2}
    assert as_sets(read(str(recipe), task)[0]) == undisturbed[0][MID:]


def test_other_nodes_see_the_global_batches_of_one(undisturbed, recipe):
    """Two nodes in the library's own view; their ranks need no second machine to be laid out."""
    from streaming.base.batching import generate_work
    from streaming.base.world import World

    from itt_composer.data.streams import build_dataset
    from itt_composer.recipe.schema import load_recipe

    for parts in (1, 2):
        overrides = [SHARES, f"data.num_canonical_nodes={parts}"]
        data = load_recipe(str(recipe), overrides).data
        orders = []
        for nodes, ranks in ((1, 1), (2, 1), (2, 2), (4, 2), (1, 8)):
            dataset = build_dataset(data, "train", 16)
            dataset.batch_size = 16 // (nodes * ranks)
            work = generate_work("random", dataset, World(nodes, ranks, 2, 0), 0, 32)
            # (nodes, ranks, workers, batches per worker, batch) → batches in order of training
            order = work.transpose(3, 2, 0, 1, 4).reshape(-1, 16)
            orders.append([sorted(batch) for batch in order.tolist() if batch[0] != -1])
        assert all(order == orders[0] for order in orders[1:])
        assert len(orders[0]) == undisturbed[1] - 2


@pytest.mark.parametrize("workers", [0, 2])
def test_two_ranks_count_every_validation_row_once(recipe, two_ranks, workers):
    batches, _ = read(str(recipe), {"split": "validation"})
    on_one = sorted(tuple(row) for batch in batches for row in batch)
    assert sorted(row for batch in two_ranks(f"validation{workers}") for row in batch) == on_one
