"""One text, the same ids everywhere: in rows, `generate`, `eval` and the exported tokenizer."""

import json
from itertools import takewhile

import pytest
import tokenizers
import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import decoders, pre_tokenizers, processors
from transformers import AutoTokenizer

from data_prep.convert import convert
from data_prep.options import Options
from eval.language_model import EvaluatedLM
from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.folder import model_card, set_document_ends, write_model_folder
from itt_composer.models.generation import prompt_ids
from itt_composer.runs.loading import load_tokenizer

BEGIN, END, OTHER = "<|begin|>", "<|end|>", "<|other|>"
GEOMETRY = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "thinking": "dense",
    "max_position_embeddings": 512,
}
TEXTS = [
    "a plain document",
    f"{END} spells {BEGIN} special {OTHER} tokens </s> <s>{END}",
    f"{BEGIN}begins with one",
    "<s>as does this one",
    "  blanks\n\n\tand ümläuts, 你好 😀 ",
]


def byte_level(special=(BEGIN, END, OTHER), add_prefix_space=False):
    """GPT-NeoX's kind: no template, so transformers puts nothing around a text."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def with_template(single=f"{BEGIN} $A", **settings):
    """LLaMA-3's kind: a template puts BOS before a text."""
    tokenizer = byte_level(**settings)
    ids = [(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return tokenizer


def with_plain_ends():
    """BOS and EOS are added tokens, but not special ones."""
    tokenizer = byte_level(special=())
    tokenizer.add_tokens([BEGIN, END])
    return tokenizer


def unigram():
    """Its vocabulary holds the names of special tokens, with the best scores of all."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", BEGIN, END], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def normalizing():
    """A kind that the fast encoder is not proven for."""
    tokenizer = byte_level()
    tokenizer.normalizer = tokenizers.normalizers.NFKC()
    return tokenizer


def metaspace():
    """LLaMA's blanks in a pre-tokenizer, one of them before the first word alone."""
    tokenizer = unigram()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    return tokenizer


def in_a_sequence():
    """The blank in front is a setting of one of several steps."""
    tokenizer = byte_level()
    cut = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel()])
    return tokenizer


BOTH = {"bos_token": BEGIN, "eos_token": END}
# As transformers 5 writes it: a class and a list that version 4.57 does not know.
VERSION_5 = BOTH | {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": [OTHER]}
NO_BOS, AS_TOKENS = {"bos_token": "none"}, {"special_tokens": "token"}
CASES = {
    "no template": (byte_level, BOTH, {}),
    "no template, none": (byte_level, BOTH, NO_BOS),
    "no template, null": (byte_level, BOTH | {"bos_token": None}, {}),
    "template": (with_template, BOTH, {}),
    "template, none": (with_template, BOTH, NO_BOS),
    "template, as tokens": (with_template, BOTH, AS_TOKENS),
    "template with EOS": (lambda: with_template(f"{BEGIN} $A {END}"), BOTH, {}),
    "other BOS": (with_template, BOTH, {"bos_token": OTHER}),
    "plain ends": (with_plain_ends, BOTH, {}),
    "saved by transformers 5": (with_template, VERSION_5, {}),
    "unigram": (unigram, BOTH, {}),
    "normalizing": (normalizing, BOTH, {}),
    "blank in front": (lambda: byte_level(add_prefix_space=True), BOTH, {}),
    "metaspace": (metaspace, BOTH, {}),
    "blank in front, cut by words": (in_a_sequence, BOTH, {}),
    "sentencepiece": (None, {}, {}),
    "sentencepiece, none": (None, {}, NO_BOS),
}


@pytest.fixture
def folder_of(small_text, tmp_path):
    """A folder with a tokenizer, by the name of a case."""

    def write(make, config):
        if make is None:
            return small_text / "tokenizer"
        folder = tmp_path / "own"
        folder.mkdir()
        make().save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return folder

    return write


def documents_of(rows, bos, eos, count):
    """The documents of rows, in order, without EOS; those in rows only are whole."""
    ids = iter(rows)
    return [list(takewhile(lambda i: i != eos, ids)) for _ in range(count)]


@pytest.mark.parametrize("case", CASES)
def test_rows_generate_eval_and_the_exported_tokenizer_agree(case, folder_of, tmp_path):
    from streaming import LocalDataset

    make, config, options = CASES[case]
    root = tmp_path / "root" / "web" / "a.jsonl"
    root.parent.mkdir(parents=True)
    texts = [TEXTS[0]] if options == AS_TOKENS else TEXTS  # EOS would end a document in its text
    root.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "x" * 40]))
    out = tmp_path / "shards"
    source = str(folder_of(make, config))
    made = Options(root.parents[1], str(out), source, 4, validation_share=0, workers=1, **options)
    manifest = convert(made)
    data = LocalDataset(str(out / "train" / "web"))
    row_ids = [int(i) for index in range(len(data)) for i in data[index]["input_ids"]]
    documents = documents_of(row_ids, manifest.bos_id, manifest.eos_id, len(texts))

    model = IttForCausalLM(IttConfig(**GEOMETRY, vocab_size=manifest.vocab_size))
    set_document_ends(model, manifest.bos_id, manifest.eos_id)
    folder = tmp_path / "model"
    write_model_folder(folder, model, model_card(model, "small", ""), out / "tokenizer")
    exported = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    lm = EvaluatedLM(model.eval(), load_tokenizer(str(folder)))
    for text, ids in zip(texts, documents, strict=True):
        assert (ids[:1] == [manifest.bos_id]) == (manifest.bos_id is not None)
        assert exported(text).input_ids == exported.encode(text) == ids
        assert prompt_ids(model.config, exported, text) == ids
        assert lm.tok_encode(text) == ids
        assert lm.tok_batch_encode([text])[0].tolist() == [ids]
    assert list(lm._encode_all(texts).values()) == documents
    padded, mask = lm.tok_batch_encode(texts)
    assert [row[kept.bool()].tolist() for row, kept in zip(padded, mask, strict=True)] == documents
    assert [exported.bos_token_id, exported.eos_token_id, len(exported)] == [
        *(manifest.bos_id, manifest.eos_id, manifest.vocab_size),
    ]
    special = {manifest.bos_id, manifest.eos_id} - {None}
    assert not any(special & set(ids[1:]) for ids in documents)


def test_names_of_special_tokens_are_tokens_everywhere_where_that_is_asked(folder_of, tmp_path):
    root = tmp_path / "root" / "web" / "a.jsonl"
    root.parent.mkdir(parents=True)
    root.write_text(json.dumps({"text": TEXTS[1]}) + "\n")
    source = str(folder_of(with_template, BOTH))
    options = {"validation_share": 0, "workers": 1, "special_tokens": "token"}
    manifest = convert(Options(root.parents[1], str(tmp_path / "out"), source, 2, **options))
    assert manifest.special_token_names == {"web": 4}
    loaded = load_tokenizer(str(tmp_path / "out" / "tokenizer"))
    begin, end, other = loaded.convert_tokens_to_ids([BEGIN, END, OTHER])
    ids = loaded(TEXTS[1]).input_ids
    assert [i for i in ids if i in (begin, end, other)] == [begin, end, begin, other, end]
    model = IttForCausalLM(IttConfig(**GEOMETRY, vocab_size=manifest.vocab_size))
    set_document_ends(model, begin, end)
    assert prompt_ids(model.config, loaded, TEXTS[1]) == ids
    assert EvaluatedLM(model.eval(), loaded).tok_encode(TEXTS[1]) == ids


def test_a_tokenizer_saved_by_transformers_5_is_loaded_and_exported_so_that_4_loads_it(
    folder_of, tmp_path
):
    folder = folder_of(with_template, VERSION_5)
    expected = with_template().encode(TEXTS[0]).ids
    assert load_tokenizer(str(folder))(TEXTS[0]).input_ids == expected
    model = IttForCausalLM(IttConfig(**GEOMETRY, vocab_size=400))
    write_model_folder(tmp_path / "model", model, "", folder)
    exported = AutoTokenizer.from_pretrained(tmp_path / "model", local_files_only=True)
    assert exported(TEXTS[0]).input_ids == expected


@torch.no_grad()
def test_a_tokenizer_that_reads_special_tokens_is_asked_as_the_harness_asks_it(folder_of):
    """Another one's model: lm-eval gives no second BOS to a text that spells one."""
    config = BOTH | {"tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer = AutoTokenizer.from_pretrained(folder_of(with_template, config))
    model = IttForCausalLM(IttConfig(**GEOMETRY, vocab_size=400)).eval()
    ours, theirs = EvaluatedLM(model, tokenizer), HFLM(model, tokenizer=tokenizer, batch_size=1)
    for text in TEXTS:
        assert ours.tok_encode(text) == theirs.tok_encode(text)
        assert torch.equal(ours.tok_batch_encode([text])[0], theirs.tok_batch_encode([text])[0])
