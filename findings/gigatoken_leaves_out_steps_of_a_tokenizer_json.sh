#!/usr/bin/env bash
# gigatoken leaves out some settings of a tokenizer.json, and gives other ids without an error.
#
# It refuses many steps that it does not know. These three it reads past: `use_regex: false` of a ByteLevel pre-tokenizer
# (words are split all the same), `single_word` of an added token (found inside words), and `truncation` (the whole
# text is encoded). Each is valid and read by `tokenizers`, whose ids are the reference. Random or short samples need
# not meet the second one.
# Seen with gigatoken 0.10.0 and tokenizers 0.22.2. We take gigatoken only for the kinds that are proven
# (data_prep/encoder_choice.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gigatoken==0.10.0 tokenizers==0.22.2 'awkward<3'
"$folder/venv/bin/python" - <<'PYTHON'
import gigatoken
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = ["the cat and the cats sat on the mat", "a cat", "category of mats and cats"] * 4


def tokenizer(use_regex):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    return made


plain, whole_text, word, short = tokenizer(True), tokenizer(False), tokenizer(True), tokenizer(True)
word.add_tokens([AddedToken("cat", single_word=True, normalized=False)])
short.enable_truncation(max_length=3)
found = {}
for name, reference in {
    "nothing unusual": plain,
    "use_regex false": whole_text,
    "single_word": word,
    "truncation": short,
}.items():
    fast = gigatoken.Tokenizer.from_json(reference.to_str())
    expected = [reference.encode(text, add_special_tokens=False).ids for text in TEXTS[:3]]
    got = fast.encode_batch([text.encode() for text in TEXTS[:3]], parallel=False).to_list()
    found[name] = got == expected
    print(f"{name}: the same ids {found[name]}")
    if not found[name]:
        print("   tokenizers", expected[2][:8], "gigatoken", got[2][:8])
assert found == {
    "nothing unusual": True,
    "use_regex false": False,
    "single_word": False,
    "truncation": False,
}, found
PYTHON
echo "as described: three settings were left out without an error"
