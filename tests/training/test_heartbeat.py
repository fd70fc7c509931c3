"""Who is to blame when no rank gets ahead."""

from itt_composer.training.heartbeat import Report, blame


def report(batch=7, phase="training", seconds=60.0):
    return Report(beats=9, batch=batch, phase=phase, seconds=seconds, host="node3")


def test_a_rank_that_is_silent_is_blamed():
    sentence = blame({0: report(), 1: report(phase="loading data"), 2: report()}, {2})
    assert sentence == "rank 2 hangs: no sign of life since training at batch 8 (on node3)"


def test_a_rank_that_is_behind_is_blamed():
    reports = {0: report(), 1: report(phase="loading data"), 2: report()}
    assert blame(reports, set()) == (
        "rank 1 hangs: for 60 s loading data at batch 8 (on node3), while the others wait"
    )
    saving = {0: report(phase="saving a checkpoint"), 1: report(phase="loading data")}
    assert blame(saving, set()).startswith("rank 0 hangs: for 60 s saving a checkpoint at batch 7")


def test_ranks_that_are_level_are_reported_as_such():
    sentence = blame({rank: report() for rank in range(12)}, set())
    assert sentence.startswith("ranks 0, 1, 2, 3, 4, 5, 6, 7 … hang: for 60 s training at batch 8")
    assert sentence.endswith("none behind the others")
