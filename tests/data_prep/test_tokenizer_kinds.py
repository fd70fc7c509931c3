"""Every kind of tokenizer that `convert` takes, and what it says of those it does not."""

import json
import re
import shutil
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import sentencepiece
import tokenizers
from small_conversions import (
    assert_one_line,
    content,
    manifest_of,
    model_of,
    rows_of,
    texts_of,
)

from data_prep import convert as conversion
from data_prep.documents import Document
from data_prep.encoder import Encoder, EncoderMismatchError, is_checked
from data_prep.encoder_choice import why_reference
from data_prep.tokenizer import Tokenizer, load_tokenizer
from itt_composer.basics.errors import UserError

BEGIN, END = "<|begin|>", "<|end|>"


def byte_level(texts, special, vocab_size=600):
    """A `tokenizers` byte-level BPE."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def trained(root):
    return byte_level(texts_of(root), [BEGIN, END])


@pytest.fixture
def file(trained, tmp_path):
    """A bare `tokenizer.json`."""
    path = tmp_path / "json" / "tokenizer.json"
    path.parent.mkdir()
    trained.save(str(path))
    return path


def write_config(folder, **config):
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def expected_ids(root, trained, bos, eos):
    """Encode `root/code` by `tokenizers`, one document after the other."""
    begin = [] if bos is None else [trained.token_to_id(bos)]
    end = [trained.token_to_id(eos)]
    texts = texts_of(root / "code")
    return [
        i for t in texts for i in (*begin, *trained.encode(t, add_special_tokens=False).ids, *end)
    ]


def assert_code_is(out, expected):
    rows = rows_of(out / "train" / "code")
    assert rows.flatten().tolist() == expected[: rows.size]
    assert len(expected) - rows.size < 64


def test_tokenizer_json_with_its_config_beside_it(convert, root, trained, file, tmp_path):
    # transformers writes tokens as strings or as objects.
    write_config(file.parent, bos_token={"content": BEGIN, "lstrip": False}, eos_token=END)
    for name, given in [("file", file), ("folder", file.parent)]:
        out = tmp_path / name
        assert convert(tokenizer=given, out=out, validation_share=0).exit_code == 0
        assert_code_is(out, expected_ids(root, trained, BEGIN, END))
        manifest = manifest_of(out)
        assert (manifest["bos_id"], manifest["eos_id"], manifest["vocab_size"]) == (0, 1, 600)
        assert manifest["tokenizer"]["file"] == "tokenizer/tokenizer.json"
        assert manifest["tokenizer"]["source_sha256"] == sha256(file.read_bytes()).hexdigest()
    assert content(tmp_path / "file" / "train") == content(tmp_path / "folder" / "train")


def test_transformers_loads_the_tokenizer_of_the_output(convert, root, trained, file, tmp_path):
    from transformers import AutoTokenizer

    write_config(
        file.parent, bos_token=BEGIN, eos_token=END, tokenizer_class="PreTrainedTokenizerFast"
    )
    convert(tokenizer=file.parent)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "shards" / "tokenizer", local_files_only=True)
    text = texts_of(root)[0]
    assert loaded(text, add_special_tokens=False).input_ids == trained.encode(text).ids
    assert loaded.eos_token == END


def test_transformers_knows_the_tokens_that_were_named(convert, trained, file, tmp_path):
    from transformers import AutoTokenizer

    assert convert(tokenizer=file, bos_token=BEGIN, eos_token=END).exit_code == 0
    loaded = AutoTokenizer.from_pretrained(tmp_path / "shards" / "tokenizer", local_files_only=True)
    assert (loaded.bos_token, loaded.eos_token) == (BEGIN, END)
    manifest = manifest_of(tmp_path / "shards")
    assert [loaded.bos_token_id, loaded.eos_token_id] == [manifest["bos_id"], manifest["eos_id"]]


def test_bos_and_eos_are_given_taken_or_none(convert, root, trained, file, tmp_path):
    for name, options, bos, eos in [
        ("given", {"bos_token": END, "eos_token": BEGIN}, END, BEGIN),
        ("none", {"bos_token": "none", "eos_token": END}, None, END),
    ]:
        out = tmp_path / name
        result = convert(tokenizer=file, out=out, validation_share=0, **options)
        assert result.exit_code == 0, result.output
        assert_code_is(out, expected_ids(root, trained, bos, eos))
        assert (manifest_of(out)["bos_id"] is None) == (bos is None)
    write_config(file.parent, bos_token=None, eos_token=END)  # as Qwen's says: no BOS
    out = tmp_path / "null"
    assert convert(tokenizer=file, out=out, validation_share=0).exit_code == 0
    assert_code_is(out, expected_ids(root, trained, None, END))


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (None, {}, "does not say which token begins a document: give --bos-token"),
        (None, {"bos_token": BEGIN}, "does not say which token ends a document: give --eos-token"),
        (
            {"bos_token": BEGIN, "eos_token": None},
            {},
            "does not say which token ends a document: give --eos-token",
        ),
        (None, {"bos_token": "<x>"}, "has no token '<x>', which --bos-token names"),
        (
            {"bos_token": BEGIN, "eos_token": "<y>"},
            {},
            "has no token '<y>', which --eos-token names",
        ),
        (
            {"bos_token": BEGIN, "eos_token": END},
            {"eos_token": "none"},
            "does not say which token ends a document",
        ),
    ],
)
def test_tokens_that_are_missing_or_unknown_are_one_sentence(
    convert, file, config, options, message
):
    if config is not None:
        write_config(file.parent, **config)
    assert_one_line(convert(tokenizer=file, **options), str(file), message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", " is not JSON"),
        ("[]", " is not a JSON object"),
        ('{"bos_token": 5}', ": bos_token is not a token: name one with --bos-token"),
    ],
)
def test_a_broken_config_is_one_sentence(convert, file, content, message):
    (file.parent / "tokenizer_config.json").write_text(content)
    assert_one_line(convert(tokenizer=file), f"tokenizer_config.json{message}")


def test_a_broken_config_beside_a_sentencepiece_model_is_one_sentence(convert, tokenizer, tmp_path):
    shutil.copytree(tokenizer, tmp_path / "own")
    (tmp_path / "own" / "tokenizer_config.json").write_text("{")
    assert_one_line(convert(tokenizer=tmp_path / "own"), "tokenizer_config.json is not JSON")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bos_token": "<x>"}, "has no piece '<x>', which --bos-token names"),
        ({"eos_token": "<x>"}, "has no piece '<x>', which --eos-token names"),
        ({"eos_token": "none"}, "documents cannot be separated"),
    ],
)
def test_unknown_pieces_of_a_sentencepiece_model_are_one_sentence(convert, options, message):
    assert_one_line(convert(**options), message)


def test_sentencepiece_model_without_bos(convert, root, tokenizer, tmp_path):
    from transformers import AutoTokenizer

    assert convert(bos_token="none", validation_share=0).exit_code == 0
    manifest = manifest_of(tmp_path / "shards")
    assert (manifest["bos_id"], manifest["eos_id"]) == (None, 2)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    assert_code_is(
        tmp_path / "shards", [i for t in texts_of(root / "code") for i in (*processor.encode(t), 2)]
    )
    loaded = AutoTokenizer.from_pretrained(tmp_path / "shards" / "tokenizer", local_files_only=True)
    assert loaded.bos_token is None
    assert loaded("a few words").input_ids == processor.encode("a few words")


def test_model_wins_over_the_json_beside_it(convert, tokenizer, file, tmp_path):
    shutil.copy(tokenizer / "tokenizer.model", file.parent)
    assert convert(tokenizer=file.parent).exit_code == 0
    assert manifest_of(tmp_path / "shards")["tokenizer"]["file"] == "tokenizer/tokenizer.model"


def test_transformers_folder_of_a_slow_tokenizer(convert, root, trained, file, tmp_path):
    """GPT-2's form: `vocab.json` and `merges.txt`, no `tokenizer.json`."""
    folder = tmp_path / "slow"
    folder.mkdir()
    trained.model.save(str(folder))
    write_config(folder, tokenizer_class="GPT2Tokenizer", bos_token=END, eos_token=END)
    result = convert(tokenizer=folder, validation_share=0)
    assert result.exit_code == 0, result.output
    assert_code_is(tmp_path / "shards", expected_ids(root, trained, END, END))
    (folder / "vocab.json").unlink()
    assert_one_line(
        convert(tokenizer=folder, out=tmp_path / "other"),
        f"transformers cannot load a fast tokenizer from {folder}",
    )


@pytest.fixture
def hub(file, tmp_path, monkeypatch):
    """A cache of the hub that holds `someone/byte-level`, and no network."""
    from huggingface_hub import constants

    write_config(file.parent, bos_token=BEGIN, eos_token=END)
    cache = tmp_path / "hub"
    revision = "0123456789abcdef0123456789abcdef01234567"
    snapshot = cache / "models--someone--byte-level" / "snapshots" / revision
    snapshot.parent.mkdir(parents=True)
    shutil.copytree(file.parent, snapshot)
    (cache / "models--someone--byte-level" / "refs").mkdir()
    (cache / "models--someone--byte-level" / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("hub")
def test_hub_name_is_found_in_the_cache_without_network(convert, root, trained, tmp_path):
    result = convert(tokenizer="someone/byte-level", validation_share=0)
    assert result.exit_code == 0, result.output
    assert_code_is(tmp_path / "shards", expected_ids(root, trained, BEGIN, END))


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["someone/else", "no-tokenizer-here", "a/b/c"])
def test_a_name_that_is_nowhere_is_one_sentence(convert, name):
    assert_one_line(convert(tokenizer=name), f"no tokenizer at {name}")


@pytest.fixture(scope="module")
def unsupported(root):
    """Tokenizers that gigatoken is not proven for: name → file's bytes."""
    texts = texts_of(root)
    word_piece = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    word_piece.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=700, special_tokens=["[UNK]", BEGIN, END], show_progress=False
    )
    word_piece.train_from_iterator(texts, trainer)
    normalized = byte_level(texts, [BEGIN, END])
    normalized.normalizer = tokenizers.normalizers.NFKC()
    return {
        "unigram.model": model_of(texts, model_type="unigram"),
        "no_bytes.model": model_of(texts, model_type="bpe", character_coverage=0.99),
        "word_piece.json": word_piece.to_str().encode(),
        "normalized.json": normalized.to_str().encode(),
    }


@pytest.mark.parametrize(
    "name", ["unigram.model", "no_bytes.model", "word_piece.json", "normalized.json"]
)
def test_what_gigatoken_is_not_proven_for_is_converted_by_the_reference(
    convert, root, unsupported, name, tmp_path
):
    path = tmp_path / name
    path.write_bytes(unsupported[name])
    tokens = {"bos_token": BEGIN, "eos_token": END} if name.endswith("json") else {}
    result = convert(tokenizer=path, validation_share=0, workers=1, **tokens)
    assert result.exit_code == 0, result.output
    manifest = manifest_of(tmp_path / "shards")
    assert manifest["encoder"] == "reference"
    line = f"gigatoken is not proven for {manifest['why_reference']}: the reference encodes"
    assert line in result.stderr
    differs = "a few texts have other ids than in these rows" in result.stderr
    assert differs == name.endswith(".model")  # Unigram, and a normalizer of SentencePiece's
    loaded = load_tokenizer(str(path), *tokens.values())
    texts = texts_of(root / "code")
    ids = [i for t in texts for i in (loaded.bos_id, *loaded.encode(t), loaded.eos_id)]
    assert_code_is(tmp_path / "shards", ids)


def test_both_encoders_give_the_same_shards(convert, tmp_path):
    for encoder in ("fast", "reference"):
        assert convert(out=tmp_path / encoder, encoder=encoder).exit_code == 0
    assert content(tmp_path / "fast" / "train") == content(tmp_path / "reference" / "train")


class Erring(Tokenizer):
    """A tokenizer whose fast encoder is another one's."""

    other: Tokenizer

    @property
    def fast(self):
        return self.other.fast


@pytest.fixture
def erring(tokenizer, corpus):
    """A LLaMA-like tokenizer whose fast encoder has other pieces."""
    true = load_tokenizer(str(tokenizer))
    wrong = Erring(**{name: getattr(true, name) for name in true.__dataclass_fields__})
    settings = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    texts = texts_of(corpus)[-100:]
    other = replace(true, content=model_of(texts, remove_extra_whitespaces=False, **settings))
    object.__setattr__(wrong, "other", other)
    return wrong


def test_the_first_difference_stops_the_run_by_file_and_line(erring, root, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "load_tokenizer", lambda *_: erring)
    options = conversion.Options(root, str(tmp_path / "shards"), "any", 64, workers=1)
    with pytest.raises(UserError) as caught:
        conversion.convert(options)
    assert re.fullmatch(
        rf"{root}/(code|prose)/\S+jsonl, line \d+: from token \d+ on gigatoken gives \[.*\], the "
        r"reference \[.*\]: delete the unfinished output and run again with --encoder reference",
        str(caught.value),
    )
    assert not (tmp_path / "shards").exists()
    assert conversion.convert(replace(options, encoder="reference"))


def test_every_part_is_checked_and_a_steady_sample_besides(erring):
    """The sample is decided by the documents alone, whatever their batches."""
    texts = [f"{number} and some words" for number in range(5000)]
    documents = [Document(text, text.encode()) for text in texts]
    sample = [place for place, document in enumerate(documents) if is_checked(document.data)]
    with pytest.raises(EncoderMismatchError) as caught:
        Encoder(erring, "fast").encode(documents)
    assert caught.value.document == 0
    for start in range(0, sample[0] + 1, 50):  # wherever the batch begins
        encoder = Encoder(erring, "fast")
        encoder.has_checked = True
        with pytest.raises(EncoderMismatchError) as caught:
            encoder.encode(documents[start : sample[1]])
        assert start + caught.value.document == sample[0]


def test_the_sample_is_one_document_in_512():
    chosen = sum(is_checked(f"document {number}".encode()) for number in range(100_000))
    assert chosen == pytest.approx(100_000 / 512, rel=0.2)


def test_a_large_document_is_checked_only_in_the_sample(erring):
    """Its reference ids take long: one book would cost more than all the rest of a part."""
    data = next(
        data
        for data in (f"{number} words and words. ".encode() * 1000 for number in range(100))
        if not is_checked(data)
    )
    encoder = Encoder(erring, "fast")
    encoder._is_met[:] = True  # all kinds of characters
    encoder.encode([Document(data.decode(), data)])
    assert not encoder.has_checked


def test_a_kind_of_character_is_checked_where_it_comes_first(erring):
    encoder = Encoder(erring, "fast")
    encoder.has_checked = True
    encoder._is_met[:128] = True
    plain = next(t for t in (f"{n} a" for n in range(9)) if not is_checked(t.encode()))
    unmet = next(t for t in (f"{n}\n日本 b\nc" for n in range(9)) if not is_checked(t.encode()))
    documents = [Document(text, text.encode()) for text in (plain, plain, unmet)]
    encoder.encode(documents[:2])
    with pytest.raises(EncoderMismatchError, match=r"from '日本 b\\n': token \d on") as caught:
        encoder.encode(documents)
    assert caught.value.document == 2
    encoder.encode(documents)  # both blocks of code points have been met


def test_one_batch_after_the_other_gives_the_ids_of_one_large_one(tokenizer, root):
    loaded = load_tokenizer(str(tokenizer))
    documents = [Document(text, text.encode()) for text in texts_of(root)]
    one = Encoder(loaded, "fast").encode(documents)
    encoder = Encoder(loaded, "fast")
    parts = [encoder.encode(documents[start : start + 7]) for start in range(0, len(documents), 7)]
    assert np.array_equal(one.ids, np.concatenate([part.ids for part in parts]))
    assert one.lengths.tolist() == [n for part in parts for n in part.lengths]


@pytest.mark.parametrize("key", ["normalizer", "pre_tokenizer", "added_tokens", "post_processor"])
def test_a_json_without_a_key_that_may_be_missing_is_read_as_tokenizers_reads_it(
    trained, tmp_path, key
):
    found = json.loads(trained.to_str())
    del found[key]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(found))
    loaded = load_tokenizer(str(path), BEGIN, END)
    reference = tokenizers.Tokenizer.from_file(str(path))
    reference.encode_special_tokens = True
    text = f"a few words 12\n\n{END}"
    assert loaded.encode(text) == reference.encode(text).ids
    assert [loaded.special[BEGIN], loaded.special[END]] == [loaded.bos_id, loaded.eos_id]
    assert (why_reference(loaded) is None) == (key != "pre_tokenizer")
    saved = tokenizers.Tokenizer.from_str(loaded.content.decode())
    assert saved.encode("a").ids == [loaded.bos_id, *reference.encode("a").ids]


@pytest.mark.parametrize("files", [["default"], ["default", "tool_use"], ["tool_use"], []])
def test_chat_templates_in_files_of_their_own_are_taken_over(file, tmp_path, files):
    from transformers import AutoTokenizer

    write_config(
        file.parent,
        bos_token=BEGIN,
        eos_token=END,
        tokenizer_class="PreTrainedTokenizerFast",
        chat_template="of the configuration",
    )
    (file.parent / "additional_chat_templates").mkdir()
    for name in files:
        is_default = name == "default"
        place = "chat_template" if is_default else f"additional_chat_templates/{name}"
        (file.parent / f"{place}.jinja").write_text(f"the template é {name}", "utf-8")
    load_tokenizer(str(file)).save(tmp_path / "saved")
    own = AutoTokenizer.from_pretrained(file.parent, local_files_only=True)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved", local_files_only=True)
    assert loaded.chat_template == own.chat_template
    assert (files[0] if files else "of the configuration") in str(own.chat_template)
