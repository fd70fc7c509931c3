"""Documents to convert, and what a conversion left, read without the code under test."""

import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import sentencepiece
from typer.testing import Result

REPOSITORY = Path(__file__).parents[2]
PROGRESS = re.compile(r"^\d\d:\d\d:\d\d .*\n", re.MULTILINE)  # logged every ten seconds
AWKWARD = [
    "",
    " starts with a blank, ends with blanks  \n\n",
    "tabs\tand\r\nline ends\n",
    "digits 1234567 and 3.14159",
    "héllo ▁ 日本語 😀 \u0000 \u00a0",
    "<s> the names of special tokens </s> <unk> <0x41>",
]


def write_jsonl(path: Path, texts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def zstd(data: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


def texts_of(folder: Path) -> list[str]:
    """Read the texts below a folder in the order of conversion, without the code under test."""
    files = sorted(folder.rglob("*.jsonl"))
    return [json.loads(line)["text"] for file in files for line in file.open(encoding="utf-8")]


def manifest_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def rows_of(stream: Path) -> np.ndarray:
    """Read the rows of a stream in the order of its index: (rows, seq_len)."""
    from streaming import LocalDataset

    dataset = LocalDataset(str(stream))
    return np.stack([dataset[index]["input_ids"] for index in range(len(dataset))])


def assert_one_line(result: Result, *parts: str) -> str:
    """Check a refusal: exit code 1 and one line on stderr, besides progress, that holds `parts`."""
    assert result.exit_code == 1, result.output
    line = PROGRESS.sub("", result.stderr)
    assert line.count("\n") == 1, result.stderr
    for part in parts:
        assert part in line
    return line.removeprefix("error: ").rstrip("\n")


def model_of(texts: Iterable[str], **settings: Any) -> bytes:
    """Train a SentencePiece model and return its file."""
    model = io.BytesIO()
    lines = (line for text in texts for line in text.split("\n") if line.strip())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=700, minloglevel=2, **settings
    )
    return model.getvalue()
