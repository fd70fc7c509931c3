"""Before training: what is fetched, and what is refused with one sentence."""

import json
import shutil
from pathlib import Path

import pytest
from damage import flip_a_bit
from typer.testing import CliRunner

from itt_composer.basics.errors import UserError
from itt_composer.data.integrity import RECORD_FILE, read_record
from itt_composer.data.manifest import Manifest
from itt_composer.data.prepare import check_files, check_shared_memory, prepare_shards
from itt_composer.train import app

SHARD = "train/code/00000/shard.00000.mds"


@pytest.fixture
def copy(shards, tmp_path):
    without_record = shutil.ignore_patterns(RECORD_FILE)
    return Path(shutil.copytree(shards, tmp_path / "copy", ignore=without_record))


@pytest.fixture
def prepare(small_recipe):
    def call(*overrides):
        prepare_shards(small_recipe(*overrides).data, vocab_size=512, batch_size=4)

    return call


@pytest.fixture
def refusal(prepare):
    def call(*overrides):
        with pytest.raises(UserError) as caught:
            prepare(*overrides)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return call


def test_whole_local_shards_pass_and_leave_a_record(prepare, copy):
    prepare(f"data.local={copy}")
    assert SHARD in read_record(copy)


def test_a_flipped_byte_in_a_local_shard_is_refused_by_its_name(prepare, refusal, copy):
    prepare(f"data.local={copy}")
    flip_a_bit(copy / SHARD)
    sentence = refusal(f"data.local={copy}")
    assert sentence.startswith(f"{copy / SHARD} does not match its SHA-256; convert again")
    prepare(f"data.local={copy}", "data.validate_hash=false")


def test_training_ends_with_the_sentence_before_there_is_a_model(small_recipe, copy, tmp_path):
    small_recipe()  # writes the recipe
    flip_a_bit(copy / SHARD)
    places = [f"data.local={copy}", f"run_folder={tmp_path / 'run'}"]
    result = CliRunner().invoke(app, [str(tmp_path / "small.yaml"), *places])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {copy / SHARD} does not match its SHA-256")
    assert result.stdout == ""
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_an_order_larger_than_shared_memory_is_refused(refusal, shards, monkeypatch):
    manifest = Manifest.read(shards)
    needed = 8 * sum(manifest.rows("train").values())
    monkeypatch.setattr("itt_composer.data.prepare.free_bytes", lambda: needed - 1)
    assert refusal().startswith("/dev/shm has 0 MB free, but the order of an epoch takes 0 MB; ")
    monkeypatch.setattr("itt_composer.data.prepare.free_bytes", lambda: needed)
    check_shared_memory(manifest, None)


def test_a_look_at_some_streams_leaves_the_record_of_the_others(prepare, copy):
    prepare(f"data.local={copy}")
    record = (copy / RECORD_FILE).read_text()
    check_files(copy, [("validation", "prose")], validate_hash=True)
    assert (copy / RECORD_FILE).read_text() == record


def test_a_missing_or_empty_local_shard_is_refused_without_hashes_too(refusal, copy):
    overrides = (f"data.local={copy}", "data.validate_hash=false")
    size = (copy / SHARD).stat().st_size
    (copy / SHARD).write_bytes(b"")
    assert f"{copy / SHARD} has 0 bytes instead of {size:,}" in refusal(*overrides)
    (copy / SHARD).unlink()
    assert f"{copy / SHARD} is missing" in refusal(*overrides)
    assert not (copy / RECORD_FILE).exists()


@pytest.mark.parametrize("place", ["local", "remote"])
def test_shards_that_do_not_fit_are_refused_wherever_they_are(place, refusal, shards, tmp_path):
    overrides = [f"data.{place}={shards}", "data.seq_len=16"]
    if place == "remote":
        overrides.append(f"data.local={tmp_path / 'cache'}")
    sentence = refusal(*overrides)
    assert sentence.startswith(f"data.{place}={shards}: data folder ")
    assert "rows of 32 tokens, but the recipe has data.seq_len=16" in sentence
    assert "another tokenizer than data.tokenizer=" in refusal(
        *overrides[:1] + overrides[2:], f"data.tokenizer={__file__}"
    )


def test_manifest_indexes_and_tokenizer_are_fetched_but_no_shards(prepare, shards, tmp_path):
    cache = tmp_path / "cache"
    prepare(f"data.remote={shards}", f"data.local={cache}", "data.domains={prose: 1}")
    fetched = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}
    tokenizer = {f"tokenizer/{path.name}" for path in (shards / "tokenizer").iterdir()}
    assert fetched == {
        "manifest.json",
        RECORD_FILE,
        "train/prose/index.json",
        "validation/code/index.json",
        "validation/prose/index.json",
        *tokenizer,
    }
    for name in fetched - {RECORD_FILE}:
        assert (cache / name).read_bytes() == (shards / name).read_bytes()


@pytest.mark.parametrize("file", ["train/prose/index.json", "tokenizer/tokenizer.model"])
def test_a_damaged_file_in_the_cache_is_fetched_again(prepare, shards, tmp_path, file):
    cache = tmp_path / "cache"
    places = (f"data.remote={shards}", f"data.local={cache}")
    prepare(*places)
    flip_a_bit(cache / file)
    prepare(*places)
    assert (cache / file).read_bytes() == (shards / file).read_bytes()


def test_a_damaged_shard_in_the_cache_is_removed(prepare, shards, tmp_path, capsys):
    cache = tmp_path / "cache"
    places = (f"data.remote={shards}", f"data.local={cache}")
    prepare(*places)
    (cache / SHARD).parent.mkdir()
    shutil.copy(shards / SHARD, cache / SHARD)
    prepare(*places)
    assert (cache / SHARD).is_file()
    flip_a_bit(cache / SHARD)
    prepare(*places)
    assert not (cache / SHARD).exists()
    assert f"{cache / SHARD} does not match its SHA-256: removed" in capsys.readouterr().out


def test_a_damaged_file_at_the_remote_is_refused(refusal, copy, tmp_path):
    flip_a_bit(copy / "train/code/index.json")
    sentence = refusal(f"data.remote={copy}", f"data.local={tmp_path / 'cache'}")
    assert sentence.startswith(f"{copy}/train/code/index.json does not match its SHA-256")


def test_a_cache_of_other_shards_is_refused(prepare, refusal, copy, tmp_path):
    places = (f"data.remote={copy}", f"data.local={tmp_path / 'cache'}")
    prepare(*places)
    manifest = json.loads((copy / "manifest.json").read_bytes())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"bos_id": 77}))
    assert "is the cache of other shards than data.remote=" in refusal(*places)


@pytest.mark.parametrize(
    ("remote", "words"),
    [
        ("no/such/folder", "manifest.json cannot be downloaded (FileNotFoundError"),
        ("ftp://host/shards", "manifest.json cannot be downloaded (ValueError: Unsupported remote"),
    ],
)
def test_a_remote_that_cannot_be_reached_is_one_sentence(refusal, tmp_path, remote, words):
    sentence = refusal(f"data.remote={remote}", f"data.local={tmp_path / 'cache'}")
    assert sentence.startswith(f"data.remote={remote}: {words}")


def test_an_object_store_without_its_host_is_one_sentence(refusal, tmp_path, monkeypatch):
    # A real client of S3 against a port where nothing listens.
    for key, value in {
        "S3_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(key, value)
    sentence = refusal("data.remote=s3://bucket/shards", f"data.local={tmp_path / 'cache'}")
    assert sentence.startswith(
        "data.remote=s3://bucket/shards: manifest.json cannot be downloaded (EndpointConnection"
    )


def test_an_unfinished_upload_is_refused(refusal, copy, tmp_path):
    manifest = json.loads((copy / "manifest.json").read_bytes())
    del manifest["splits"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    sentence = refusal(f"data.remote={copy}", f"data.local={tmp_path / 'cache'}")
    assert sentence.startswith(f"{copy}/manifest.json is of shards that are not finished")
