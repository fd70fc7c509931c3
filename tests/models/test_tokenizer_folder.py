"""A LLaMA's tokenizer in a model's folder has SentencePiece's ids, whatever the transformers."""

import json
import os
import random
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from itt_composer.models.tokenizer import load_tokenizer
from itt_composer.models.tokenizer_folder import copy_tokenizer

REPOSITORY = Path(__file__).parents[2]
SHARED = Path(os.environ.get("ITT_SHARED_DATA", REPOSITORY.parent / "shared/data"))
LLAMA_2 = SHARED / "llama2_tokenizer/tokenizer.model"
# What version 0.1.0 wrote beside shards.
BEFORE = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "legacy": True,
}
NO_BOS = BEFORE | {"bos_token": None, "add_bos_token": False}
PARTS = [*(" ", "  ", "the", "\n", "\t", "<s>", "</s>", "<unk>", "é", "😀", "42", "▁", ".")]
AWKWARD = [
    "",
    " ",
    "   ",
    " begins with a blank",
    "\n a line",
    "ends with one ",
    "<s>",
    " <s>",
    "<s> after a special",
    "<s>after a special",
    "one <s> between </s> two",
    "</s></s>",
    "<unk>",
    "<0x41> <0x0A>",
    "▁▁blanks",
    "你好 ümläut e\u0301 \u00a0",
    "    def f(x):\r\n\treturn x",
]


def texts() -> list[str]:
    draw = random.Random(0)
    mixed = ["".join(draw.choices(PARTS, k=draw.randint(1, 20))) for _ in range(80)]
    prose = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("\n\n")
    return AWKWARD + mixed + prose


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A model trained on this repository's own text, with LLaMA's settings."""
    prefix = tmp_path_factory.mktemp("small") / "tokenizer"
    sentencepiece.SentencePieceTrainer.train(
        input=str(REPOSITORY / "README.md"),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return prefix.with_suffix(".model")


@pytest.fixture(params=["small", "LLaMA-2"])
def model(request, small) -> Path:
    if request.param == "LLaMA-2" and not LLAMA_2.is_file():
        pytest.skip(f"{LLAMA_2} is not there")
    return small if request.param == "small" else LLAMA_2


def copied(folder: Path, model: Path | None, config: dict | None, **files: str) -> Path:
    """What becomes of a tokenizer's folder; `config.json` says whose it is, as in a model's."""
    before, after = folder / "before", folder / "after"
    before.mkdir()
    after.mkdir()
    (after / "config.json").write_text('{"model_type": "llama"}')
    if model is not None:
        (before / "tokenizer.model").write_bytes(model.read_bytes())
    if config is not None:
        (before / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (before / name.replace("__", ".")).write_text(content)
    copy_tokenizer(before, after)
    return after


@pytest.mark.parametrize("config", [BEFORE, NO_BOS, None], ids=["before", "no BOS", "no config"])
def test_a_sentencepiece_model_alone_gets_a_file_with_its_ids(model, config, tmp_path):
    folder = copied(tmp_path, model, config)
    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    truth = sentencepiece.SentencePieceProcessor(model_file=str(model))
    begin = [] if config is NO_BOS else [1]
    assert [loaded.bos_token_id, loaded.eos_token_id] == [None if config is NO_BOS else 1, 2]
    together = loaded(texts()).input_ids
    for text, ids in zip(texts(), together, strict=True):
        expected = truth.encode(text)
        assert ids == loaded(text).input_ids == [*begin, *expected], text
        assert loaded(text, add_special_tokens=False).input_ids == expected, text
        assert loaded.decode(expected) == truth.decode(expected), text
    # The model stays: by it the shards are known that this tokenizer made.
    assert (folder / "tokenizer.model").read_bytes() == model.read_bytes()


def test_commands_read_such_a_folder_as_it_will_be_exported(model, tmp_path):
    after = copied(tmp_path, model, BEFORE)
    ours = load_tokenizer(tmp_path / "before")
    assert ours.name_or_path == str(tmp_path / "before")
    exported = AutoTokenizer.from_pretrained(after, local_files_only=True)
    assert ours(texts()).input_ids == exported(texts()).input_ids


def test_a_chat_tokenizer_reads_its_special_tokens(small, tmp_path):
    template = "{% for m in messages %}<|turn|>{{ m['content'] }}</s>{% endfor %}"
    config = BEFORE | {
        "added_tokens_decoder": {"600": {"content": "<|turn|>", "special": True}},
        "chat_template": template,
    }
    folder = copied(tmp_path, small, config, added_tokens__json='{"<|turn|>": 600}')
    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    turn = loaded.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert turn == "<|turn|>a</s>"
    ids = loaded(turn, add_special_tokens=False).input_ids
    assert (ids[0], ids[-1]) == (600, 2)
    assert loaded("a").input_ids[0] == 1


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "LlamaTokenizerFast"])
def test_a_llamas_own_file_is_read_as_it_is(kind, small, tmp_path):
    (tmp_path / "made").mkdir()
    made = copied(tmp_path / "made", small, BEFORE)
    content = (made / "tokenizer.json").read_text("utf-8")
    config = BEFORE | {"tokenizer_class": kind}
    folder = copied(tmp_path, None, config, tokenizer__json=content)
    assert (folder / "tokenizer.json").read_text("utf-8") == content
    loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    plain = [text for text in texts() if "<" not in text]
    truth = sentencepiece.SentencePieceProcessor(model_file=str(small))
    assert loaded(plain).input_ids == [[1, *truth.encode(text)] for text in plain]
    assert loaded("<s> a").input_ids[:2] == [1, 1]  # its own habit: a name is the token


def test_another_ones_class_is_left_alone(small, tmp_path):
    config = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True}
    folder = copied(tmp_path, small, config)
    assert not (folder / "tokenizer.json").exists()
    assert json.loads((folder / "tokenizer_config.json").read_bytes()) == config
