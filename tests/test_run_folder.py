"""The run's folder: finished, resumable, or another recipe's."""

from pathlib import Path

import pytest

from itt_composer.errors import UserError
from itt_composer.run_folder import RunFolder


@pytest.fixture
def started(small_recipe):
    run = RunFolder(small_recipe())
    run.write_recipe()
    return run


def test_a_run_is_finished_when_its_summary_is_there(small_recipe, started):
    again = RunFolder(small_recipe())
    assert not again.is_finished()
    again.check_resumable()
    started.write_summary({"batches": 10})
    assert again.is_finished()


def test_an_empty_folder_is_neither_finished_nor_in_the_way(small_recipe):
    run = RunFolder(small_recipe())
    assert not run.is_finished()
    run.check_resumable()


def test_another_recipe_is_not_finished_here_and_is_refused_with_what_differs(
    small_recipe, started
):
    started.write_summary({})
    other = RunFolder(small_recipe("seed=3", "model.hidden_size=64"))
    assert not other.is_finished()
    with pytest.raises(UserError) as caught:
        other.check_resumable()
    sentence = str(caught.value)
    assert sentence.startswith(f"{started.recipe_file} is of another recipe (")
    for change in ("-seed: 17", "+seed: 3", "-  hidden_size: 32", "+  hidden_size: 64"):
        assert change in sentence
    assert "vocab_size" not in sentence
    assert "choose another run_name or run_folder" in sentence


def test_an_interrupted_write_leaves_what_was_there(started, monkeypatch):
    started.write_summary({"batches": 1})
    before = started.summary.read_bytes()

    def write_half(path, text, **options):
        path.write_bytes(text[: len(text) // 2].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(KeyboardInterrupt):
        started.write_summary({"batches": 2})
    assert started.summary.read_bytes() == before


def test_a_write_leaves_nothing_but_its_file(started):
    started.write_summary({})
    names = {path.name for path in started.path.iterdir()}
    assert names == {"recipe.yaml", "summary.json"}
