"""Real material shared by these tests: a sample corpus, a tree of documents, a tokenizer."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from small_conversions import AWKWARD, REPOSITORY, texts_of, write_jsonl
from typer.testing import CliRunner, Result

from data_prep.__main__ import app

Run = Callable[..., Result]


@pytest.fixture(scope="session")
def run() -> Run:
    """Call `python -m data_prep` in this process with arguments of any kind."""

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """A sample corpus of 4 MB."""
    out = tmp_path_factory.mktemp("sample") / "corpus"
    result = run("sample-corpus", "--out", out, "--megabytes", 4)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """Two domains of real and awkward documents, some in subfolders: about 0.5 MB."""
    root = tmp_path_factory.mktemp("documents") / "root"
    code = sorted(texts_of(corpus / "code"), key=len)[:60]
    write_jsonl(root / "code" / "b.jsonl", code[:20])
    write_jsonl(root / "code" / "a" / "deep.jsonl", code[20:])
    prose = sorted(texts_of(corpus / "docstrings"), key=len)[:60]
    write_jsonl(root / "prose" / "all.jsonl", [*prose[:30], *AWKWARD, *prose[30:]])
    return root


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, root: Path, run: Run) -> Path:
    """A tokenizer of 800 pieces, trained on `root`."""
    out = tmp_path_factory.mktemp("trained") / "tokenizer"
    result = run("train-tokenizer", root, "--out", out, "--vocab-size", 800)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def convert(run: Run, root: Path, tokenizer: Path, tmp_path: Path) -> Run:
    """Convert `root` to `tmp_path/shards` with rows of 64 ids; options may be changed or added."""

    def invoke(**changed: object) -> Result:
        options = {"out": tmp_path / "shards", "tokenizer": tokenizer, "seq_len": 64} | changed
        source = options.pop("root", root)
        pairs = ((f"--{name.replace('_', '-')}", value) for name, value in options.items())
        return run("convert", source, *(part for pair in pairs for part in pair))

    return invoke


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the RedPajama sample and the LLaMA-2 model."""
    folder = Path(os.environ.get("ITT_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "redpajama_sample").is_dir():
        pytest.skip(f"no redpajama_sample in {folder}: set ITT_SHARED_DATA to the data folder")
    return folder


@pytest.fixture(scope="session")
def llama(shared_data: Path) -> Path:
    """LLaMA-2's SentencePiece model."""
    return shared_data / "llama2_tokenizer" / "tokenizer.model"


@pytest.fixture(scope="session")
def sample(shared_data: Path) -> dict[str, list[str]]:
    """The texts of the RedPajama sample by file, read without the code under test."""
    folder = shared_data / "redpajama_sample"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jsonl"))
    return {
        file: [json.loads(line)["text"] for line in (folder / file).open(encoding="utf-8")]
        for file in files
    }


@pytest.fixture(scope="session")
def sample_ids(sample: dict[str, list[str]], llama: Path) -> dict[str, list[list[int]]]:
    """SentencePiece's ids of every document of the sample: encoded once for all tests, 9 s."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(llama))
    return {file: [processor.encode(text) for text in texts] for file, texts in sample.items()}
