"""Every kind of damage to a converted folder is found and named, and nothing else is."""

import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import flip_a_bit
from refusals import assert_refused
from streaming import MDSWriter, StreamingDataset
from streaming.base.format import reader_from_json
from streaming.base.util import merge_index

from data_prep.shard_checks import check_info
from data_prep.verify import Verification, verify_folder
from itt_composer.basics.errors import UserError
from itt_composer.data.fingerprints import DamageError
from itt_composer.data.index import ShardFile

SEQ_LEN = 16
VOCAB_SIZE = 500
# Rows of every stream, by part; a stream of one unnamed part has no subfolders.
STREAMS = {
    "train/c4": {"00000": 40, "00001": 25},
    "train/code": {"": 30},
    "validation/c4": {"": 7},
}
MODEL = b"a model"
SHARD = "train/c4/00001/shard.00000.mds"
OTHER_SHARD = "train/code/shard.00000.mds"
INDEX = "train/c4/index.json"
PART_INDEX = "train/c4/00001/index.json"


def build(
    out: Path,
    largest_id: int = VOCAB_SIZE - 1,
    compression: str | None = None,
    dtype: str = "uint16",
    column: str = "input_ids",
    hashes: tuple[str, ...] = ("sha256",),
) -> Path:
    """Write shards with the streaming library, of random ids and one `largest_id` per stream."""
    generator = np.random.default_rng(0)
    splits: dict[str, Any] = {"train": {}, "validation": {}}
    for stream, parts in STREAMS.items():
        for part, rows in parts.items():
            with MDSWriter(
                out=str(out / stream / part),
                columns={column: f"ndarray:{dtype}:{SEQ_LEN}"},
                compression=compression,
                hashes=list(hashes),
                size_limit=600,
            ) as writer:
                ids = generator.integers(0, VOCAB_SIZE, (rows, SEQ_LEN)).astype(dtype)
                ids[rows // 2, 3] = largest_id
                for row in ids:
                    writer.write({column: row})
        if "" not in parts:
            merge_index(str(out / stream), keep_local=True)
        split, domain = stream.split("/")
        splits[split][domain] = counts_of(sum(parts.values()))
    splits["validation"]["code"] = counts_of(0)
    (out / "tokenizer").mkdir()
    (out / "tokenizer" / "tokenizer.model").write_bytes(MODEL)
    manifest = {
        "format_version": 2,
        "command": "convert",
        "seq_len": SEQ_LEN,
        "dtype": dtype,
        "vocab_size": VOCAB_SIZE,
        "bos_id": 1,
        "eos_id": 2,
        "shard_size": 600,
        "compression": compression,
        "hashes": list(hashes),
        "engine": "local",
        "tokenizer": {"file": "tokenizer/tokenizer.model", "sha256": sha256(MODEL).hexdigest()},
        "splits": splits,
        "totals": {
            split: {key: sum(counts[key] for counts in domains.values()) for key in counts_of(0)}
            for split, domains in splits.items()
        },
        "rejects": {},
        "budgets": None,
    }
    (out / "manifest.json").write_text(json.dumps(manifest))
    list_files(out)
    return out


def counts_of(rows: int) -> dict[str, int]:
    return {
        "documents": 3 * rows,
        "characters": 50 * rows,
        "utf8_bytes": 51 * rows,
        "tokens": rows * SEQ_LEN,
        "dropped_tokens": min(rows, 5),
        "unused_tokens": 0,
        "rows": rows,
    }


def list_files(out: Path) -> None:
    """Make the manifest list the files as they are."""
    files = {
        path.relative_to(out).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    edit_json(out / "manifest.json", lambda manifest: manifest.update(files=files))


def seal(out: Path) -> None:
    """Make every size and hash fit the files as they are, as if they had been written so."""
    for index in out.rglob("index.json"):
        edit_json(index, lambda content, folder=index.parent: seal_entries(content, folder))
    list_files(out)


def seal_entries(index: dict[str, Any], folder: Path) -> None:
    for entry in index["shards"]:
        data = (folder / entry["raw_data"]["basename"]).read_bytes()
        entry["raw_data"].update(bytes=len(data), hashes={"sha256": sha256(data).hexdigest()})


def edit_json(path: Path, edit: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def check(out: Path, workers: int = 2) -> Verification:
    return verify_folder(out, workers, lambda done, total: None)


def problems(out: Path) -> dict[str, str]:
    """Verify and return what is wrong, by file; two problems of one file are joined."""
    found: dict[str, str] = {}
    for file, problem in check(out).problems:
        found[file] = f"{found[file]}; {problem}" if file in found else problem
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("built") / "shards")


@pytest.fixture(scope="module")
def built_compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("built") / "shards", compression="zstd:3")


@pytest.fixture
def out(built: Path, tmp_path: Path) -> Path:
    """Uncompressed shards, to be damaged."""
    return shutil.copytree(built, tmp_path / "shards")


@pytest.fixture
def compressed(built_compressed: Path, tmp_path: Path) -> Path:
    """Compressed shards, to be damaged."""
    return shutil.copytree(built_compressed, tmp_path / "shards")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd:3"},
        {"compression": "gz"},
        {"dtype": "uint32"},
        {"hashes": ("sha1", "sha256", "xxh3_64")},
    ],
)
def test_intact_folder_is_ok_and_counted(tmp_path, options):
    out = build(tmp_path / "shards", **options)
    report = check(out)
    assert report.problems == []
    assert report.ok
    assert report.rows == 102
    assert report.tokens == 102 * SEQ_LEN
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "manifest.json"]
    assert report.shards == sum(".mds" in path.name for path in files) > 10
    assert report.bytes == sum(path.stat().st_size for path in files)


def test_rows_are_those_that_the_streaming_library_reads(built):
    read = 0
    for stream in STREAMS:
        for entry in json.loads((built / stream / "index.json").read_text())["shards"]:
            for sample in reader_from_json(str(built / stream), None, entry):
                assert sample["input_ids"].shape == (SEQ_LEN,)
                assert sample["input_ids"].max() < VOCAB_SIZE
                read += 1
    assert read == check(built).rows


def test_any_number_of_workers_gives_the_same_report(out):
    flip_a_bit(out / SHARD, -1)
    (out / OTHER_SHARD).unlink()
    assert check(out, workers=1) == check(out, workers=7)


def test_progress_ends_at_the_bytes_of_all_files(built):
    calls = []
    verify_folder(built, 2, lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (check(built).bytes,) * 2


@pytest.mark.parametrize("position", [0, 5, 60, 200, -1])
@pytest.mark.parametrize("file", [SHARD, PART_INDEX, INDEX, "tokenizer/tokenizer.model"])
def test_a_flipped_byte_names_its_file_alone(out, file, position):
    flip_a_bit(out / file, position % (out / file).stat().st_size)
    assert problems(out) == {file: "does not match its SHA-256"}


@pytest.mark.parametrize("file", [SHARD, PART_INDEX, INDEX, "tokenizer/tokenizer.model"])
def test_a_missing_file_is_named(out, file):
    (out / file).unlink()
    assert problems(out) == {file: "is missing"}


@pytest.mark.parametrize("file", [SHARD, PART_INDEX, INDEX])
def test_a_truncated_file_is_named(out, file):
    data = (out / file).read_bytes()
    (out / file).write_bytes(data[:-7])
    lengths = f"has {len(data) - 7:,} bytes instead of {len(data):,}"
    assert problems(out) == {file: lengths}


def test_an_unreadable_file_is_named(out):
    (out / SHARD).unlink()
    (out / SHARD).mkdir()
    edit_json(
        out / "manifest.json",
        lambda manifest: manifest["files"][SHARD].update(bytes=(out / SHARD).stat().st_size),
    )
    assert problems(out) == {SHARD: "cannot be read (Is a directory)"}


def test_every_damaged_file_is_named_and_only_intact_rows_count(out):
    whole = check(out)
    flip_a_bit(out / SHARD, -1)
    (out / OTHER_SHARD).unlink()
    flip_a_bit(out / "validation/c4/index.json", 40)
    report = check(out)
    assert [file for file, _ in report.problems] == [SHARD, OTHER_SHARD, "validation/c4/index.json"]
    assert report.shards == whole.shards
    assert 0 < whole.rows - report.rows < 40
    assert not report.ok


def test_two_swapped_shards_are_both_named(out):
    one, two = out / SHARD, out / "train/c4/00000/shard.00000.mds"
    assert one.stat().st_size == two.stat().st_size
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)
    both = {SHARD, "train/c4/00000/shard.00000.mds"}
    assert problems(out) == dict.fromkeys(both, "does not match its SHA-256")
    list_files(out)
    assert problems(out) == dict.fromkeys(both, "sha256 differs from its index's")


@pytest.mark.parametrize(
    "file", ["train/c4/shard.00099.mds", "train/old/index.json", "validation/shard.00000.mds.tmp"]
)
def test_a_stray_shard_or_index_is_named(out, file):
    (out / file).parent.mkdir(exist_ok=True)
    (out / file).write_bytes(b"left over")
    assert problems(out) == {file: "is there, but the manifest does not list it"}


def test_what_sparks_tasks_left_in_a_store_is_not_damage(out):
    for name in ("17/index.json", "18/index.json", "18/shard.00000.mds"):
        stray = out / "train/c4" / name
        stray.parent.mkdir(exist_ok=True)
        shutil.copy(out / PART_INDEX, stray)
    assert len(check(out).problems) == 3
    edit_json(out / "manifest.json", lambda manifest: manifest.update(engine="spark"))
    assert check(out).ok
    shutil.copy(out / SHARD, out / "train/c4/shard.00000.mds")
    assert [problem.file for problem in check(out).problems] == ["train/c4/shard.00000.mds"]


def test_other_peoples_files_are_left_alone(out):
    (out / "train" / "notes.txt").write_text("mine")
    assert check(out).ok


@pytest.mark.parametrize("compression", [None, "zstd:3"])
def test_an_id_beyond_the_vocabulary_is_found_though_all_hashes_agree(tmp_path, compression):
    out = build(tmp_path / "shards", largest_id=VOCAB_SIZE, compression=compression)
    found = problems(out)
    assert len(found) == 4
    assert all(
        problem.endswith("holds id 500, but the vocabulary has 500 ids")
        for problem in found.values()
    )
    assert sum(file.startswith("train/c4/") for file in found) == 2


def test_the_row_of_a_wrong_id_is_named(out):
    (begin,) = np.frombuffer((out / SHARD).read_bytes()[4:8], "uint32")
    data = bytearray((out / SHARD).read_bytes())
    row, place = 5, 7
    position = int(begin) + 2 * (row * SEQ_LEN + place)
    data[position : position + 2] = (60_000).to_bytes(2, "little")
    (out / SHARD).write_bytes(bytes(data))
    seal(out)
    assert problems(out) == {SHARD: "row 5 holds id 60,000, but the vocabulary has 500 ids"}


def test_every_wrong_byte_of_a_header_is_found_though_all_hashes_agree(out):
    (begin,) = np.frombuffer((out / SHARD).read_bytes()[4:8], "uint32")
    assert begin > 200
    for position in range(begin):
        flip_a_bit(out / SHARD, position)
        seal(out)
        assert list(problems(out)) == [SHARD], position
        flip_a_bit(out / SHARD, position)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: b"", "its header promises 0 rows in 0 bytes"),
        (lambda data: bytes(4) + data[4:], "its header promises 0 rows in "),
        (lambda data: b"\xff" * 4 + data[4:], "its header promises 4,294,967,295 rows in "),
        (lambda data: data[:-2], "its rows lie at bytes "),
        (lambda data: data + b"\0\0", "its rows lie at bytes "),
        (lambda data: data.replace(b"uint16:16", b"uint16:17"), "its header has column_encodings"),
        (lambda data: data.replace(b"uint16:16", b"uint99:16"), "its header has column_encodings"),
        (lambda data: data.replace(b": 600", b": 700"), "its header has another configuration"),
        (lambda data: data.replace(b'{"col', b'["col'), "its header's configuration is broken"),
    ],
)
def test_a_shard_written_wrong_is_found_though_all_hashes_agree(out, edit, message):
    data = (out / SHARD).read_bytes()
    assert edit(data) != data
    (out / SHARD).write_bytes(edit(data))
    seal(out)
    found = problems(out)
    assert list(found) == [SHARD]
    assert found[SHARD].startswith(message)


def test_rows_of_another_length_are_found_though_all_hashes_agree(out):
    data = bytearray((out / SHARD).read_bytes())
    (offset,) = np.frombuffer(data[8:12], "uint32")
    data[8:12] = int(offset + 2).to_bytes(4, "little")
    (out / SHARD).write_bytes(bytes(data))
    seal(out)
    assert problems(out) == {SHARD: "row 0 has 34 bytes instead of 32"}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda index: index.update(version=3), "is not an index of shards: "),
        (lambda index: index.pop("shards"), "is not an index of shards: Field required at shards"),
        (
            lambda index: index["shards"][0].pop("samples"),
            "is not an index of shards: Field required",
        ),
        (
            lambda index: index["shards"][0].update(part=1),
            "is not an index of shards: Extra inputs",
        ),
        (lambda index: index["shards"][0].update(format="csv"), "describes shard.00000.mds with f"),
        (
            lambda index: index["shards"][0].update(column_encodings=["ndarray:uint16:8"]),
            "describes shard.00000.mds with column_encodings ['ndarray:uint16:8'], but the",
        ),
        (
            lambda index: index["shards"][0].update(column_names=["tokens"]),
            "describes shard.00000.mds with column_names ['tokens'], but the manifest",
        ),
        (
            lambda index: index["shards"][0].update(zip_data=index["shards"][0]["raw_data"]),
            "calls shard.00000.mds compressed, unlike the manifest",
        ),
        (
            lambda index: index["shards"][0]["raw_data"].update(hashes={}),
            "gives shard.00000.mds the hashes none, the manifest sha256",
        ),
        (
            lambda index: index["shards"][0]["raw_data"].update(basename="../c4/index.json"),
            "names '../c4/index.json', which lies outside its folder",
        ),
        (
            lambda index: index["shards"].append(index["shards"][0]),
            "names shard.00000.mds more than once",
        ),
    ],
)
def test_an_index_written_wrong_is_found_though_all_hashes_agree(out, edit, message):
    file = "train/code/index.json"
    edit_json(out / file, edit)
    list_files(out)
    found = problems(out)
    assert list(found) == [file]
    assert found[file].startswith(message)


def test_an_index_that_mixes_up_compressed_shards_is_found(compressed):
    file = "train/code/index.json"
    edit_json(
        compressed / file,
        lambda index: index["shards"][0]["raw_data"].update(basename="shard.00001.mds"),
    )
    list_files(compressed)
    problem = "pairs shard.00001.mds with shard.00000.mds.zstd, another shard's file"
    assert problems(compressed) == {file: problem}


def test_rows_that_begin_inside_the_header_are_found_though_all_hashes_agree(out):
    data = bytearray((out / SHARD).read_bytes())
    rows = int.from_bytes(data[:4], "little")
    begin = len(data) - rows * 32
    header_end = 4 * (rows + 2)
    (out / SHARD).write_bytes(
        int(rows).to_bytes(4, "little")
        + (np.arange(rows + 1, dtype="uint32") * 32 + header_end - 4).tobytes()
        + bytes(data[begin + 4 :])
    )
    seal(out)
    assert problems(out)[SHARD].startswith("its header's configuration is broken")


def test_an_index_that_is_not_json_is_found_though_its_hash_agrees(out):
    (out / INDEX).write_bytes(b"\xffnothing")
    list_files(out)
    assert problems(out)[INDEX].startswith("is not an index of shards: ")


def test_a_wrong_size_in_the_index_is_found(out):
    edit_json(
        out / "train/code/index.json",
        lambda index: index["shards"][0]["raw_data"].update(bytes=1),
    )
    list_files(out)
    size = (out / OTHER_SHARD).stat().st_size
    assert problems(out) == {OTHER_SHARD: f"holds {size:,} bytes, its index gives 1"}


def test_wrong_samples_in_the_index_are_found_at_the_shard_and_in_the_sum(out):
    edit_json(out / "train/code/index.json", lambda index: index["shards"][0].update(samples=7))
    list_files(out)
    found = problems(out)
    assert found.keys() == {OTHER_SHARD, "manifest.json"}
    assert found[OTHER_SHARD].endswith("rows, its index gives 7")
    assert found["manifest.json"].startswith("gives train/code 30 rows, its index ")


def test_a_shard_missing_from_its_index_is_found(out):
    file = "train/code/index.json"
    edit_json(out / file, lambda index: index["shards"].pop(0))
    list_files(out)
    found = problems(out)
    assert found.keys() == {OTHER_SHARD, "manifest.json"}
    assert found[OTHER_SHARD] == "train/code/index.json does not name it"
    assert check(out).rows < 102


@pytest.mark.parametrize("file", [OTHER_SHARD, "train/code/index.json"])
def test_a_file_that_the_manifest_does_not_list_is_found(out, file):
    edit_json(out / "manifest.json", lambda manifest: manifest["files"].pop(file))
    found = problems(out)
    assert list(found) == [file]
    assert ";" not in found[file]


def test_a_part_whose_index_differs_from_the_whole_is_found(out):
    edit_json(out / PART_INDEX, lambda index: index["shards"].pop())
    list_files(out)
    assert problems(out) == {PART_INDEX: f"describes other shards than {INDEX} does"}


def test_shards_of_a_domain_without_rows_are_found(out):
    shutil.copytree(out / "validation" / "c4", out / "validation" / "code")
    list_files(out)
    found = problems(out)
    assert {Path(file).parent.as_posix() for file in found} == {"validation/code"}
    assert len(found) == len(list((out / "validation" / "code").iterdir()))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda manifest: manifest["splits"]["train"]["code"].update(rows=31, tokens=31 * 16),
            "gives train/code 31 rows, its index 30",
        ),
        (
            lambda manifest: manifest["splits"]["train"]["code"].update(tokens=481),
            "gives train/code 481 tokens, but 30 rows of 16 are 480",
        ),
        (
            lambda manifest: manifest["totals"]["train"].update(documents=1),
            "gives train 1 documents, but its domains add up to 285",
        ),
        (
            lambda manifest: manifest["totals"].pop("validation"),
            "gives validation none rows, but its domains add up to 7",
        ),
    ],
)
def test_wrong_counts_in_the_manifest_are_found(out, edit, message):
    edit_json(out / "manifest.json", edit)
    found = problems(out)
    assert list(found) == ["manifest.json"]
    assert message in found["manifest.json"]


def test_another_row_length_in_the_manifest_is_found(out):
    edit_json(out / "manifest.json", lambda manifest: manifest.update(seq_len=8))
    assert {INDEX, SHARD, OTHER_SHARD, "manifest.json"} <= problems(out).keys()


def test_a_wrong_size_of_a_compressed_shard_in_the_index_is_found(compressed):
    edit_json(
        compressed / "train/code/index.json",
        lambda index: index["shards"][0]["zip_data"].update(bytes=1),
    )
    list_files(compressed)
    found = problems(compressed)
    assert list(found) == [f"{OTHER_SHARD}.zstd"]
    assert found[f"{OTHER_SHARD}.zstd"].endswith("bytes, its index gives 1")


@pytest.mark.parametrize("position", [0, 4, 30, -1])
def test_damage_to_a_compressed_shard_is_named(compressed, position):
    file = f"{SHARD}.zstd"
    flip_a_bit(compressed / file, position % (compressed / file).stat().st_size)
    assert problems(compressed) == {file: "does not match its SHA-256"}


def test_a_compressed_shard_that_holds_another_is_found(compressed):
    """Size and hash of the compressed file agree everywhere, those of its content do not."""
    file = f"{SHARD}.zstd"
    data = (compressed / "train/c4/00000/shard.00000.mds.zstd").read_bytes()
    (compressed / file).write_bytes(data)
    for index in (INDEX, PART_INDEX):
        edit_json(compressed / index, lambda content: reseal_compressed(content, data))
    list_files(compressed)
    assert problems(compressed) == {file: "sha256 differs from its index's"}


def reseal_compressed(index: dict[str, Any], data: bytes) -> None:
    for entry in index["shards"]:
        if entry["zip_data"]["basename"] in ("shard.00000.mds.zstd", "00001/shard.00000.mds.zstd"):
            entry["zip_data"].update(bytes=len(data), hashes={"sha256": sha256(data).hexdigest()})


def test_a_compressed_shard_that_cannot_be_decompressed_is_found(compressed):
    file = f"{SHARD}.zstd"
    data = b"no zstd at all"
    (compressed / file).write_bytes(data)
    for index in (INDEX, PART_INDEX):
        edit_json(compressed / index, lambda content: reseal_compressed(content, data))
    list_files(compressed)
    found = problems(compressed)
    assert list(found) == [file]
    assert found[file].startswith("cannot be decompressed (")


def test_shards_are_checked_against_the_manifest_when_their_index_is_damaged(compressed):
    flip_a_bit(compressed / INDEX, 30)
    flip_a_bit(compressed / f"{SHARD}.zstd", 30)
    assert problems(compressed).keys() == {INDEX, f"{SHARD}.zstd"}
    assert check(compressed).rows > 60


def test_copies_that_training_decompressed_are_checked_too(compressed):
    whole = check(compressed)
    dataset = StreamingDataset(local=str(compressed / "train" / "c4"), batch_size=1)
    assert len(list(dataset)) == 65
    assert (compressed / SHARD).is_file()
    assert check(compressed).ok
    assert check(compressed).rows == whole.rows
    flip_a_bit(compressed / SHARD, -1)
    assert problems(compressed) == {SHARD: "sha256 differs from its index's"}


@pytest.mark.parametrize("name", ["../elsewhere", "/etc/hostname", "train//c4/index.json"])
def test_a_manifest_that_leads_outside_its_folder_is_refused(out, name):
    entry = {"bytes": 1, "sha256": "00"}
    edit_json(out / "manifest.json", lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(UserError, match="lies outside"):
        check(out)


def test_the_command_prints_each_problem_and_fails(out, run):
    result = run("verify", out)
    assert result.exit_code == 0
    assert result.stdout.endswith(" shards, 102 rows, 1,632 tokens: ok\n")
    flip_a_bit(out / SHARD, -1)
    (out / OTHER_SHARD).unlink()
    result = run("verify", out, "--workers", 3)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[:2] == [
        f"damaged: {SHARD}: does not match its SHA-256",
        f"damaged: {OTHER_SHARD}: is missing",
    ]
    assert lines[2].endswith("tokens: 2 problems")
    assert len(lines) == 3


def test_the_command_prints_one_json_document(out, run):
    result = run("verify", out, "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert (report["rows"], report["tokens"], report["problems"]) == (102, 1632, [])
    flip_a_bit(out / SHARD, -1)
    result = run("verify", out, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["ok"] is False
    assert report["problems"] == [{"file": SHARD, "problem": "does not match its SHA-256"}]


def test_bad_input_is_one_sentence(out, run, tmp_path):
    (out / "manifest.json").write_text("{")
    for folder in (tmp_path / "absent", out, "s3://bucket/shards"):
        assert_refused(run("verify", folder), str(folder))


def test_a_hash_of_an_unknown_kind_is_reported():
    info = ShardFile(basename="shard.00000.mds", bytes=1, hashes={"md99": "0"})
    with pytest.raises(DamageError, match=r"^cannot be checked: .*md99"):
        check_info(b"x", info, {})
