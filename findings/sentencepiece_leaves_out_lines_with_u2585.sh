#!/usr/bin/env bash
# SentencePiece's trainer leaves out every line that holds ▅ (U+2585), and says so at level INFO only.
#
# It marks unknown characters with that block element inside, and a line that has one of its own is dropped whole,
# whatever else stands in it. A corpus with drawings or progress bars in it (terminal logs, README files, notebooks) is
# trained on in part: with `minloglevel=1`, as many set it, without a word, and the counts of the caller are wrong.
# The neighbouring blocks ▄ and ▆ are learned like any other character.
# Seen with sentencepiece 0.2.0 and 0.2.1. We replace the character before the training and count it
# (data_prep/tokenizer_training.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
for version in 0.2.0 0.2.1; do
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "sentencepiece==$version"
    "$folder/venv/bin/python" - "$version" <<'PYTHON'
import io
import sys

import sentencepiece

LEARNED = {}
for block in "▄▅▆":
    # Half of the lines hold the only words with a "q"; each of them also holds the block.
    lines = [f"quick quiet quilt {block}" if i % 2 else "plain words of a text" for i in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=40,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=1,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    names = [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())]
    LEARNED[block] = any("q" in name for name in names)
print(f"sentencepiece {sys.argv[1]}: words of the lines with a block were learned: {LEARNED}")
assert LEARNED == {"▄": True, "▅": False, "▆": True}, LEARNED
PYTHON
done
echo "as described: the lines with U+2585 were left out"
