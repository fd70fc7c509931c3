"""Output folders are complete or absent, and never taken for what they are not."""

import errno
import os

import pytest

from data_prep.complete_folder import already_complete, complete_folder, is_inside, write_manifest
from itt_composer.basics.errors import UserError

RECIPE = {"command": "test", "seq_len": 8, "inputs": {"a": {"bytes": 1, "sha256": "00"}}}


def fail(out, error):
    with complete_folder(out) as folder:
        (folder / "data").write_bytes(b"abc")
        raise error


def make(out):
    with complete_folder(out) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "data").write_bytes(b"abc")
        write_manifest(folder, RECIPE, {"rows": 3})


@pytest.mark.parametrize(
    "error", [ValueError("any"), KeyboardInterrupt(), OSError(errno.EACCES, "no")]
)
def test_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        fail(tmp_path / "new" / "out", error)
    assert list((tmp_path / "new").iterdir()) == []


def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError) as caught:
        fail(tmp_path / "out", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert str(caught.value).startswith("the disk is full")
    assert str(tmp_path / "out") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_run_are_replaced(tmp_path):
    stale = tmp_path / ".out.partial" / "part"
    stale.mkdir(parents=True)
    (stale / "old").write_bytes(b"half")
    make(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "part" / "old").exists()


def test_absent_and_empty_folders_are_not_complete(tmp_path):
    assert not already_complete(tmp_path / "absent", RECIPE)
    (tmp_path / "out").mkdir()
    assert not already_complete(tmp_path / "out", RECIPE)
    make(tmp_path / "out")
    assert already_complete(tmp_path / "out", RECIPE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seq_len": 16}, "seq_len 8, asked for 16"),
        ({"inputs": {}}, "other inputs"),
        ({"command": "convert"}, "of test"),
    ],
)
def test_output_of_another_recipe_is_refused(tmp_path, changed, message):
    make(tmp_path / "out")
    with pytest.raises(UserError) as caught:
        already_complete(tmp_path / "out", RECIPE | changed)
    assert message in str(caught.value)
    assert "choose another --out or delete what is there" in str(caught.value)


def test_damaged_or_missing_file_is_named(tmp_path):
    make(tmp_path / "out")
    data = tmp_path / "out" / "part" / "data"
    data.write_bytes(b"abd")
    with pytest.raises(UserError, match="data does not match its SHA-256: delete"):
        already_complete(tmp_path / "out", RECIPE)
    data.unlink()
    with pytest.raises(UserError, match="data is missing: delete"):
        already_complete(tmp_path / "out", RECIPE)


@pytest.mark.parametrize("manifest", [None, b"", b"[]", b"{}", b"\xff", b'{"format_version": 1}'])
def test_somebody_elses_folder_is_refused(tmp_path, manifest):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    if manifest is not None:
        (out / "manifest.json").write_bytes(manifest)
    with pytest.raises(UserError, match="exists and is not a complete output"):
        already_complete(out, RECIPE)
    assert (out / "thesis.tex").read_text() == "mine"


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a complete output"):
        already_complete(tmp_path / "out", RECIPE)


def test_inside_is_decided_on_folders_not_on_names(tmp_path):
    assert is_inside(tmp_path / "data", tmp_path / "data")
    assert is_inside(tmp_path / "data" / "x", tmp_path / "data")
    assert not is_inside(tmp_path / "data2", tmp_path / "data")
