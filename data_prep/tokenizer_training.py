"""`train-tokenizer`: a LLaMA-style SentencePiece model of a corpus."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sentencepiece

from data_prep.documents import read_documents
from data_prep.domains import find_domains
from data_prep.manifest import (
    already_complete,
    complete_folder,
    fingerprint_files,
    write_manifest,
)
from data_prep.split import split_of
from data_prep.tokenizer import MODEL_FILE, load_tokenizer
from itt_composer.errors import UserError

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
}


def train_tokenizer(
    root: Path, out: Path, vocab_size: int, validation_share: float, text_field: str
) -> dict[str, Any] | None:
    """Train a tokenizer on the training documents of `root` and write its folder `out`.

    `transformers.AutoTokenizer.from_pretrained(out)` loads it as a LLaMA tokenizer with the ids
    that SentencePiece gives.

    Args:
        root: folder with `<domain>/**/*.jsonl`.
        out: folder to make; appears only when it is complete.
        vocab_size: number of ids, including 3 special and 256 byte pieces.
        validation_share: share (0..1) of documents, by `split_of`, that training must not see.
        text_field: name of the field that holds the text.

    Returns:
        The manifest, or None when `out` already held this tokenizer.

    Raises:
        UserError: bad input, too little text for `vocab_size`, or `out` holds something else.
    """
    files = [path for paths in find_domains(root).values() for path in paths]
    recipe = {
        "command": "train-tokenizer",
        "vocab_size": vocab_size,
        "validation_share": validation_share,
        "text_field": text_field,
        "inputs": fingerprint_files(root, files),
    }
    if already_complete(out, recipe):
        return None
    with complete_folder(out) as folder:
        counts = {"documents": 0, "utf8_bytes": 0}
        # A list, as SentencePiece loses what an iterator raises and trains on the part it got.
        lines = list(_training_lines(files, validation_share, text_field, counts))
        if not lines:
            raise UserError(f"{root} has no training text: add some or lower --validation-share")
        model = folder / MODEL_FILE
        model.write_bytes(_train(lines, vocab_size))
        load_tokenizer(str(model)).save(folder)
        return write_manifest(folder, recipe, {"trained_on": counts})


def _training_lines(
    files: list[Path], validation_share: float, text_field: str, counts: dict[str, int]
) -> Iterator[str]:
    """Yield the lines of the training documents and count those documents in `counts`.

    Like LLaMA's, the tokenizer is trained on lines, so no piece crosses or holds a line break.
    """
    for path in files:
        for document in read_documents(path, text_field):
            if split_of(document.data, validation_share) == "train":
                counts["documents"] += 1
                counts["utf8_bytes"] += len(document.data)
                yield from filter(None, document.text.split("\n"))


def _train(lines: list[str], vocab_size: int) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            minloglevel=2,
            **LLAMA_SETTINGS,
        )
    except RuntimeError as error:
        # SentencePiece raises this for a vocabulary too large or too small for the text.
        raise UserError(
            f"SentencePiece cannot make {vocab_size} pieces from this corpus "
            f"({_reason(error)}): change --vocab-size or give it more text"
        ) from error
    return model.getvalue()


def _reason(error: RuntimeError) -> str:
    """SentencePiece's message without its source position, failed condition and option names."""
    message = str(error).replace("\n", " ").rpartition("] ")[2].partition(" Increase")[0]
    return message.strip(" .")
