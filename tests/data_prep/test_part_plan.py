"""Parts: whatever the part size, every line of every file is converted exactly once."""

import gzip
import json
import subprocess
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_conversions import zstd

from data_prep.documents import BadInputError, Piece, PieceReader
from data_prep.part_plan import pieces_of, plan_parts
from data_prep.unfinished_conversion import piece_sha256

ENDS = st.sampled_from([b"\n", b"\r\n"])
LENGTHS = st.one_of(st.integers(0, 12), st.integers(0, 12), st.integers(50, 400))
LINES = st.lists(st.tuples(LENGTHS, ENDS), min_size=1, max_size=40)


def lines_of(described, is_ended):
    """Make lines of all lengths, each with its own number in it."""
    lines = [b"%d:" % number + b"x" * size + end for number, (size, end) in enumerate(described)]
    return lines if is_ended else [*lines[:-1], lines[-1].rstrip(b"\r\n")]


@settings(max_examples=200, deadline=None)
@given(LINES, st.booleans(), st.integers(1, 700))
def test_any_part_size_gives_every_line_once_with_its_number(
    tmp_path_factory, described, is_ended, part_bytes
):
    lines = lines_of(described, is_ended)
    folder = tmp_path_factory.getbasetemp()
    path = folder / "lines.jsonl"
    path.write_bytes(b"".join(lines))
    pieces = pieces_of(path.name, path.stat().st_size, part_bytes)
    assert [piece.start for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
    found = []
    for piece in pieces:
        reader = PieceReader(folder, piece)
        own = list(reader)
        assert reader.lines_read == len(own)
        assert reader.raw_bytes == sum(map(len, own))
        assert reader.sha256.hexdigest() == piece_sha256(folder, piece)
        found += own
        numbers = [reader.file_line(place) for place in range(1, len(own) + 1)]
        assert numbers == [int(line.split(b":")[0]) + 1 for line in own]
    assert found == lines


def test_a_line_longer_than_a_piece_belongs_to_the_piece_it_starts_in(tmp_path):
    lines = [b"short\n", b"l" * 1000 + b"\n", b"end"]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    pieces = pieces_of("a.jsonl", 1010, 100)
    assert len(pieces) == 10
    read = [list(PieceReader(tmp_path, piece)) for piece in pieces]
    assert read == [lines[:2], *[[]] * 8, lines[2:]]


def test_a_line_that_starts_where_a_piece_starts_is_that_pieces(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"1234\n6789\n")
    first, second = (PieceReader(tmp_path, piece) for piece in pieces_of("a.jsonl", 10, 5))
    assert (list(first), list(second)) == ([b"1234\n"], [b"6789\n"])
    assert second.file_line(1) == 2


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_are_one_piece(suffix):
    assert pieces_of(f"a.jsonl{suffix}", 1000, 10) == [Piece(f"a.jsonl{suffix}", 0, 1000)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=12), st.integers(50, 2000))
def test_parts_hold_all_of_the_input_once_and_are_of_about_the_part_size(
    tmp_path_factory, sizes, part_bytes
):
    root = tmp_path_factory.getbasetemp() / "parts"
    (root / "d").mkdir(parents=True, exist_ok=True)
    files = []
    for number, size in enumerate(sizes):
        files.append(root / "d" / f"{number:02}.jsonl")
        files[-1].write_bytes(b"x" * size)
    orders = []
    for spread in (False, True):
        parts = plan_parts(root, {"d": files}, part_bytes, spread)["d"]
        assert [part.index for part in parts] == list(range(len(parts)))
        assert all(part.input_bytes <= 1.5 * part_bytes for part in parts)
        orders.append([part.pieces for part in parts])
    asked = [piece for path, n in zip(files, sizes, strict=True) for piece in cut(path, n, orders)]
    assert [piece for pieces in orders[0] for piece in pieces] == asked
    assert sorted(orders[1], key=str) == sorted(orders[0], key=str)
    in_order = [sum(piece.end - piece.start for piece in pieces) for pieces in orders[0]]
    # Few small ones: two in a row would have been put together.
    assert all(a + b >= part_bytes for a, b in pairwise(in_order))


def cut(path, size, orders):
    """Return the pieces of a file in the plan, which must join and cover it."""
    pieces = [piece for one in orders[0] for piece in one if Path(piece.file).name == path.name]
    assert pieces[0].start == 0
    assert pieces[-1].end == size
    assert all(a.end == b.start for a, b in pairwise(pieces))
    return pieces


def test_spread_parts_do_not_follow_the_order_of_the_input(tmp_path):
    path = tmp_path / "d" / "a.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"x" * 10_000)
    parts = plan_parts(tmp_path, {"d": [path]}, 100, spread=True)["d"]
    starts = [part.pieces[0].start for part in parts]
    assert starts != sorted(starts)
    # A fair sample: the first quarter of the parts comes from all over the file.
    assert max(starts[:25]) - min(starts[:25]) > 5000


@pytest.mark.parametrize("members", [1, 3])
def test_gzip_padded_with_zeros_is_not_damaged(tmp_path, members):
    lines = [json.dumps({"text": f"{number} " * 20}).encode() + b"\n" for number in range(3000)]
    data = b"".join(gzip.compress(b"".join(lines)) for _ in range(members)) + bytes(700)
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    subprocess.run(["gzip", "-t", tmp_path / "a.jsonl.gz"], check=True)
    reader = PieceReader(tmp_path, Piece("a.jsonl.gz", 0, len(data)))
    assert list(reader) == lines * members
    assert reader.raw_bytes == len(data)
    assert reader.sha256.hexdigest() == sha256(data).hexdigest()


@pytest.mark.parametrize("repeat", [1, 2])
def test_compressed_files_of_several_streams_are_read_to_their_end(tmp_path, repeat):
    lines = [json.dumps({"text": f"{number} " * 20}).encode() + b"\n" for number in range(3000)]
    half = len(lines) // 2
    for name, compress in [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd)]:
        streams = [compress(b"".join(part)) for part in (lines[:half], lines[half:])] * repeat
        (tmp_path / name).write_bytes(b"".join(streams))
        size = (tmp_path / name).stat().st_size
        reader = PieceReader(tmp_path, Piece(name, 0, size))
        assert list(reader) == lines * repeat
        assert reader.raw_bytes == size
        assert reader.sha256.hexdigest() == piece_sha256(tmp_path, Piece(name, 0, size))


def test_damaged_stream_gives_what_came_before_and_the_hash_of_the_whole_file(tmp_path):
    lines = [json.dumps({"text": f"{number} " * 20}).encode() + b"\n" for number in range(3000)]
    data = gzip.compress(b"".join(lines))[:-5]
    (tmp_path / "a.jsonl.gz").write_bytes(data)
    piece = Piece("a.jsonl.gz", 0, len(data))
    reader = PieceReader(tmp_path, piece)
    read: list[bytes] = []
    with pytest.raises(BadInputError, match="gzip stream is damaged or cut off") as caught:
        read.extend(reader)
    assert read == lines[: len(read)]
    assert len(read) > 2900
    assert caught.value.line == len(read) + 1
    assert reader.sha256.hexdigest() == piece_sha256(tmp_path, piece)


@pytest.mark.parametrize(("name", "place"), [("a.jsonl.gz", 500), ("a.jsonl.zst", 2)])
def test_stream_damaged_early_in_a_large_file_has_the_hash_of_the_whole_file(tmp_path, name, place):
    random = b"".join(sha256(b"%d" % number).hexdigest().encode() for number in range(10_000))
    data = gzip.compress(random) if name.endswith("gz") else zstd(random)
    (tmp_path / name).write_bytes(data[:place] + b"damage" + data[place + 6 :])
    piece = Piece(name, 0, len(data))
    reader = PieceReader(tmp_path, piece)
    with pytest.raises(BadInputError, match="stream is damaged or cut off"):
        list(reader)
    assert reader.raw_bytes == len(data)
    assert reader.sha256.hexdigest() == piece_sha256(tmp_path, piece)
