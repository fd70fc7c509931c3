"""Watched figures are of the global batch, however many ranks share the work."""

import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("watched_ranks.py")
WATCHED = (
    "callbacks={thinking_stats: {interval: 1ba}, gradient_norms: {interval: 1ba}, "
    "gradient_nuclear_norm: {interval: 1ba}}",
    "algorithms.gradient_clipping={clipping_threshold: 0.1}",
    "model.initializer_range=0.2",
    "data.num_canonical_nodes=2",  # the same rows in a batch on one rank and on two
)


def test_figures_are_the_same_on_one_rank_on_two_and_sharded(fork_server, recipe_file, shards):
    def watch(ranks):
        keys = (f"data.local={shards}", f"train.microbatch_size={4 // ranks}", *WATCHED)
        result = fork_server.run(SCRIPT, recipe_file, *keys, ranks=ranks)
        assert result.returncode == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]

    (alone,) = watch(ranks=1)
    ddp, fsdp = watch(ranks=2)
    kinds = {"thinking", "gradient_norm", "gradient_nuclear_norm", "loss"}
    assert {name.partition("/")[0] for name in alone} == kinds
    assert len(alone["gradient_norm/global"]) == len(alone["loss/train/total"]) == 2
    for kind, metrics in (("ddp", ddp), ("fsdp", fsdp)):
        expected = {name: pytest.approx(pair, rel=1e-4) for name, pair in alone.items()}
        assert metrics == expected, kind
