"""Which of many processes tells a mistake."""

import time

import pytest

from itt_composer.errors import UserError
from itt_composer.launched import failures_told_once


@pytest.mark.parametrize(
    ("rank", "local_rank", "waits"), [("0", "0", False), ("8", "0", False), ("11", "3", True)]
)
def test_each_node_tells_a_mistake_and_a_rank_that_nobody_ends_does(
    rank, local_rank, waits, monkeypatch, capsys
):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(SystemExit) as caught, failures_told_once():
        raise UserError("data.local=shards is not there")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: data.local=shards is not there\n"
    assert bool(slept) == waits
