"""`train-tokenizer`: a LLaMA-style SentencePiece model of a corpus."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryFile
from typing import Any

from data_prep import sentencepiece_process
from data_prep.complete_folder import (
    already_complete,
    complete_folder,
    fingerprints,
    is_inside,
    write_manifest,
)
from data_prep.document_split import split_of
from data_prep.documents import Fields, read_documents
from data_prep.domains import find_corpus, not_read_sentence
from data_prep.tokenizer import MODEL_FILE, load_tokenizer
from itt_composer.basics.errors import UserError

# What the model file of LLaMA-2 says about its own training, as far as it shapes the vocabulary.
# Threads do not change the result but are stored in the model, hence a fixed number.
LLAMA_SETTINGS: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "split_by_number": True,
    "split_by_unicode_script": True,
    "split_by_whitespace": True,
    "allow_whitespace_only_pieces": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": False,
    "character_coverage": 0.99995,
    "max_sentencepiece_length": 16,
    "max_sentence_length": 1 << 20,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "num_threads": 4,
    "minloglevel": 2,
}
# The trainer's process dies of 65,536 characters without a break, and it leaves out a line of
# more than `max_sentence_length` bytes: longer lines are cut, at a blank where there is one.
LONGEST_LINE = 1 << 15  # characters
COUNTED = ("documents", "utf8_bytes", "cut_runs", "reserved_characters")
# The trainer takes the first character for its own mark and would leave out the whole line; a tab
# in its place teaches it nothing.
RESERVED, UNLEARNED = "\u2585", "\t"


def train_tokenizer(
    root: Path, out: Path, vocab_size: int, validation_share: float, fields: Fields
) -> dict[str, Any] | None:
    """Train a tokenizer on the training documents of `root` and write its folder `out`.

    `transformers.AutoTokenizer.from_pretrained(out)` loads it as a LLaMA tokenizer with the ids
    that SentencePiece gives.

    Args:
        root: folder with `<domain>/**/*.jsonl`; with any files if lines name their domain.
        out: folder to make; appears only when it is complete.
        vocab_size: number of ids, including 3 special and 256 byte pieces.
        validation_share: share (0..1) of documents, by `split_of`, that training must not see.
        fields: of a line.

    Returns:
        The manifest, or None when `out` already held this tokenizer.

    Raises:
        UserError: bad input, too little text for `vocab_size`, text on which SentencePiece dies,
            or `out` lies inside `root` or holds something else.
    """
    if is_inside(out, root):
        raise UserError(f"--out {out} lies inside the input {root}: choose a folder outside it")
    corpus = find_corpus(root, mixed=fields.domain is not None)
    files, others = [p for paths in corpus.sources.values() for p in paths], corpus.not_read
    recipe = {
        "command": "train-tokenizer",
        "vocab_size": vocab_size,
        "validation_share": validation_share,
        "text_field": fields.text,
        "domain_field": fields.domain,
        "inputs": {name: file.model_dump() for name, file in fingerprints(root, files).items()},
    }
    if already_complete(out, recipe):
        return None
    with complete_folder(out) as folder:
        counts: Counter[str] = Counter()
        lines = _training_lines(files, validation_share, fields, counts)
        first = next(lines, None)
        if first is None:
            raise UserError(f"{root} has no training text: add some or lower --validation-share")
        try:
            content = _train(chain([first], lines), vocab_size)
        except _TrainerDiedError as error:
            alone = {p: _training_lines([p], validation_share, fields, Counter()) for p in files}
            where = next((p for p, own in alone.items() if _is_deadly(own, vocab_size)), root)
            raise UserError(
                f"SentencePiece's trainer does not take the text of {where} and has ended "
                f"({error}): move what is unusual in it out of {root} for the training"
            ) from error
        (folder / MODEL_FILE).write_bytes(content)
        load_tokenizer(str(folder / MODEL_FILE)).save(folder)
        trained_on = {name: counts[name] for name in COUNTED}
        return write_manifest(folder, recipe, {"trained_on": trained_on, "not_read": others})


def training_warnings(manifest: dict[str, Any], root: Path) -> list[str]:
    """Say what the tokenizer was not trained on."""
    trained_on = manifest["trained_on"]
    runs, reserved = trained_on["cut_runs"], trained_on["reserved_characters"]
    found = [
        runs
        and f"text without a blank was cut after {LONGEST_LINE:,} characters at {runs:,} places, "
        "for SentencePiece's trainer does not take more",
        reserved
        and f"the character {RESERVED} (U+2585) at {reserved:,} places was not learned, for "
        "SentencePiece keeps it for itself; it is encoded as bytes",
        not_read_sentence(root, manifest["not_read"]),
    ]
    return [sentence for sentence in found if sentence]


def _training_lines(
    files: list[Path], validation_share: float, fields: Fields, counts: Counter[str]
) -> Iterator[str]:
    """Yield the lines of the training documents and count what is `COUNTED`.

    Like LLaMA's, the tokenizer is trained on lines, so no piece crosses or holds a line break.
    """
    for path in files:
        for document in read_documents(path, fields):
            if split_of(document.data, validation_share) == "train":
                counts["documents"] += 1
                counts["utf8_bytes"] += len(document.data)
                for line in document.text.split("\n"):
                    yield from _as_taken(line, counts)


def _as_taken(line: str, counts: Counter[str]) -> Iterator[str]:
    """Yield a line so that SentencePiece takes all of it: without its mark, and cut if long."""
    if RESERVED in line:
        counts["reserved_characters"] += line.count(RESERVED)
        line = line.replace(RESERVED, UNLEARNED)
    start = 0
    while len(line) - start > LONGEST_LINE:
        blank = line.rfind(" ", start + 1, start + LONGEST_LINE + 1)
        if blank < 0:
            counts["cut_runs"] += 1
        end = blank if blank > 0 else start + LONGEST_LINE
        yield line[start:end]
        start = end + (blank > 0)  # it begins a line with a blank of its own
    if start < len(line):
        yield line[start:]


class _TrainerDiedError(Exception):
    """SentencePiece ended the process in which it was trained."""


def _is_deadly(lines: Iterable[str], vocab_size: int) -> bool:
    try:
        _train(lines, vocab_size)
    except _TrainerDiedError:
        return True
    except UserError:  # a part of a corpus may well be too small for the vocabulary
        pass
    return False


def _train(lines: Iterable[str], vocab_size: int) -> bytes:
    """Train the model of lines in a process of its own.

    Raises:
        UserError: the lines cannot be read, the vocabulary does not fit the text, or the process
            was killed.
        _TrainerDiedError: the trainer did not take the text.
    """
    settings = json.dumps(LLAMA_SETTINGS | {"vocab_size": vocab_size})
    command = [sys.executable, "-m", sentencepiece_process.__name__, settings]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with TemporaryFile() as out, TemporaryFile() as err:
        process = Popen(command, stdin=PIPE, stdout=out, stderr=err, env=environment)
        try:
            # When the pipe breaks, the exit code says why.
            with suppress(BrokenPipeError), process.stdin as pipe:  # type: ignore[union-attr]
                for line in lines:
                    pipe.write(line.encode() + b"\n")  # type: ignore[union-attr]
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        content, messages = out.read(), err.read().decode(errors="replace")
    if code == 0:
        return content
    if code == sentencepiece_process.REFUSED:
        raise UserError(
            f"SentencePiece cannot make {vocab_size} pieces from this corpus "
            f"({_without_position(content.decode())}): change --vocab-size or give it more text"
        )
    if code < 0:
        raise UserError(
            f"the process that trains the tokenizer was killed by signal {-code}, perhaps for lack "
            "of memory: run the command again, with less text if it happens again"
        )
    raise _TrainerDiedError(f"exit code {code}; {_last_check(messages)}")


def _without_position(message: str) -> str:
    """Strip source position, failed condition and option names from SentencePiece's message."""
    message = message.replace("\n", " ").rpartition("] ")[2].partition(" Increase")[0]
    return message.strip(" .")


def _last_check(messages: str) -> str:
    """Return what SentencePiece printed last: the check that failed, if it was one."""
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    checks = [line for line in lines if ".h(" in line or ".cc(" in line]
    return (checks or lines or ["no message"])[-1]
