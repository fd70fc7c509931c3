"""A real S3 server: convert to it, go on after a stop, train from it with little cache."""

import json
from pathlib import Path

import pytest
from object_store import Bucket

from data_prep.convert import convert
from data_prep.options import Options
from data_prep.remote_output import RemoteOutput
from itt_composer.basics.errors import UserError


@pytest.fixture
def text(shards: Path) -> Path:
    """The corpus that the fixture `shards` was made of."""
    return shards.parent / "text"


def options(text: Path, shards: Path, out: str, work_dir: Path, **changed) -> Options:
    tokenizer = str(shards.parent / "tokenizer")
    small = {"seq_len": 32, "validation_share": 0.2, "part_size": 20_000, "shard_size": 4_096}
    return Options(text, out, tokenizer, work_dir=work_dir, workers=1, **small | changed)


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def objects_of(bucket: Bucket, prefix: str) -> dict[str, bytes]:
    return {key.removeprefix(prefix): bucket.read(key) for key in bucket.names()}


def test_a_conversion_to_s3_is_that_to_a_folder(text, shards, bucket, tmp_path):
    convert(options(text, shards, f"{bucket.url}/a", tmp_path / "work"))
    local = options(text, shards, str(tmp_path / "local"), None)
    convert(local)
    assert objects_of(bucket, "a/") == files_of(tmp_path / "local")
    assert files_of(tmp_path / "work") == {}
    assert convert(options(text, shards, f"{bucket.url}/a", tmp_path / "work")) is None


@pytest.fixture
def broken(text, tmp_path) -> Path:
    """The last line of a copy of the corpus; its part is the smallest, and so the last one."""
    copy = tmp_path / "copy"
    for name, content in files_of(text).items():
        (copy / name).parent.mkdir(parents=True)
        (copy / name).write_bytes(content)
    last = copy / "code" / "all.jsonl"
    with last.open("ab") as file:
        file.write(b"{broken\n")
    return last


def stop(asked: Options) -> None:
    """Convert until the broken line."""
    with pytest.raises(UserError, match=r"all\.jsonl, line \d+: broken JSON"):
        convert(asked)


def mend(broken: Path) -> None:
    broken.write_bytes(broken.read_bytes().removesuffix(b"{broken\n"))


def test_a_stopped_conversion_goes_on_with_what_is_uploaded(text, broken, shards, bucket, tmp_path):
    whole = options(text, shards, str(tmp_path / "whole"), None)
    convert(whole)
    asked = options(tmp_path / "copy", shards, f"{bucket.url}/b", tmp_path / "work")
    stop(asked)
    uploaded = {key: bucket.client.head_object(Bucket=bucket.name, Key=key)["LastModified"]
                for key in bucket.names() if key.endswith(".mds")}  # fmt: skip
    assert uploaded
    assert "splits" not in json.loads(bucket.read("b/manifest.json"))
    mend(broken)
    convert(asked)
    assert objects_of(bucket, "b/") == files_of(tmp_path / "whole")
    for key, time in uploaded.items():
        assert bucket.client.head_object(Bucket=bucket.name, Key=key)["LastModified"] == time


@pytest.mark.parametrize("other", ["b/1", "b-1", "b_1"])
def test_a_stopped_conversion_is_written_anew_to_an_emptied_or_another_address(
    text, broken, shards, bucket, tmp_path, other
):
    convert(options(text, shards, str(tmp_path / "whole"), None))
    stop(options(tmp_path / "copy", shards, f"{bucket.url}/b/1", tmp_path / "work"))
    assert any(key.endswith(".mds") for key in bucket.names())
    for key in bucket.names():
        bucket.client.delete_object(Bucket=bucket.name, Key=key)
    mend(broken)
    convert(options(tmp_path / "copy", shards, f"{bucket.url}/{other}", tmp_path / "work"))
    assert objects_of(bucket, f"{other}/") == files_of(tmp_path / "whole")


def test_each_address_has_a_working_folder_of_its_own(tmp_path):
    urls = ("s3://b/run_1", "s3://b/run-1", "s3://b/run/1", "s3://b/Run-1")
    assert len({RemoteOutput(url, tmp_path).folder for url in urls}) == 4


def test_a_lost_working_folder_does_no_harm(text, shards, bucket, tmp_path):
    asked = options(text, shards, f"{bucket.url}/c", tmp_path / "work", max_reject_share=0.0)
    convert(asked)
    manifest = json.loads(bucket.read("c/manifest.json"))
    begun = {key: manifest[key] for key in manifest if key not in ("splits", "totals", "files")}
    body = json.dumps(begun).encode()
    bucket.client.put_object(Bucket=bucket.name, Key="c/manifest.json", Body=body)
    before = objects_of(bucket, "c/")
    convert(asked)
    after = objects_of(bucket, "c/")
    assert json.loads(after.pop("manifest.json")) == manifest
    del before["manifest.json"]
    assert after == before


def test_stores_that_cannot_be_used_are_named(text, shards, bucket, tmp_path, monkeypatch):
    def refusal(url: str) -> str:
        with pytest.raises(UserError) as caught:
            convert(options(text, shards, url, tmp_path / "work"))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "s3://nowhere/x" in refusal("s3://nowhere/x")
    bucket.client.put_object(Bucket=bucket.name, Key="mine/thesis.tex", Body=b"mine")
    assert "holds other objects" in refusal(f"{bucket.url}/mine")
    assert "give a folder, or a URL of s3, gs" in refusal("ftp://host/x")
    assert bucket.names() == ["mine/thesis.tex"]
    assert files_of(tmp_path / "work") == {}


def test_training_streams_from_s3_with_less_cache_than_data(
    text, shards, bucket, tmp_path, recipe_file, fork_server
):
    convert(options(text, shards, f"{bucket.url}/d", tmp_path / "work"))
    stored = sum(len(content) for name, content in objects_of(bucket, "d/").items()
                 if name.startswith("train") and name.endswith(".mds"))  # fmt: skip
    limit = 40_000
    assert stored > 2 * limit
    places = [f"data.remote={bucket.url}/d", f"data.local={tmp_path / 'cache'}"]
    keys = ["data.cache_limit=40kb", "data.predownload=8", "data.shuffle_block_size=64"]
    keys += ["run_folder=run", "train.max_duration=1ep", "train.eval_interval=1ep"]
    done = fork_server.run("itt_composer.train", recipe_file, *places, *keys, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_bytes())
    rows = json.loads(bucket.read("d/manifest.json"))["totals"]["train"]["rows"]
    assert summary["tokens"] == rows // 4 * 4 * 32
    cached = (tmp_path / "cache/train").rglob("*.mds")
    assert sum(path.stat().st_size for path in cached) <= limit + 1024
    assert (tmp_path / "run/model/tokenizer.model").is_file()
