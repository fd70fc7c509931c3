"""Several real ranks compute what one process computes, however they share the work."""

from pathlib import Path

import pytest
from conftest import RECIPE

from benchmarks import equality

# Float32: sums over ranks and microbatches are rounded in another order, about 1e-7 of a
# gradient. Adam divides by the gradient's own size, so where a gradient is all rounding, its
# weight may move by up to the learning rate, 1e-3, in another direction at each step.
LOSS_TOLERANCE = 2e-5
WEIGHT_TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def recipe(shards, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("sharding") / "recipe.yaml"
    file.write_text(RECIPE.replace("local: shards", f"local: {shards}"))
    return file


def test_one_process_ddp_and_fsdp2_train_to_the_same_losses_and_weights(
    fork_server, recipe, shards, tmp_path
):
    script = Path(equality.__file__)
    files = {world: tmp_path / f"{place}.pt" for place, world in enumerate(equality.WORLDS)}
    for world, (ranks, _) in equality.WORLDS.items():
        options = ["--world", world, "--out", files[world]]
        result = fork_server.run(script, recipe, *options, ranks=ranks)
        assert result.returncode == 0, result.stderr
    differences = equality.compare(files)
    print(f"\n{equality.table(differences)}")
    for (case, world), (loss, weight) in differences.items():
        assert loss <= LOSS_TOLERANCE, (case, world)
        assert weight <= WEIGHT_TOLERANCE, (case, world)
