"""The harness's view of a model: answers of its own `HFLM`, and those that it cannot give."""

import causal_models
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from eval.language_model import EvaluatedLM
from itt_composer.basics.errors import UserError
from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.calibration import calibrate

POSITIONS = 64
NEW_TOKENS = 5
TEXTS = ["def", "The value of an object", "for x in range(10):\n", "for y in range(99):\n", "a b c"]


@pytest.fixture(scope="module")
def tokenizer(shards):
    return AutoTokenizer.from_pretrained(shards / "tokenizer", local_files_only=True)


@pytest.fixture
def model():
    """By thresholds; generation never meets the token that ends a document."""
    torch.manual_seed(0)
    geometry = {**causal_models.GEOMETRY, "vocab_size": 512, "max_position_embeddings": POSITIONS}
    settings = {"thinking_steps": 3, "select_ratios": [0.6, 0.4]}
    model = IttForCausalLM(IttConfig(**geometry, **settings)).eval()
    ids = torch.randint(3, 512, (8, 32))
    calibrate(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    model.set_router_selection("threshold")
    return model


def asked(kind, *arguments):
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def prompts(texts=TEXTS):
    return asked(
        "generate_until", *((text, {"until": [], "max_gen_toks": NEW_TOKENS}) for text in texts)
    )


def test_windows_of_long_texts_and_texts_without_a_context_are_as_the_harness_has_them(
    model, tokenizer
):
    ours, theirs = EvaluatedLM(model, tokenizer), HFLM(model, tokenizer=tokenizer, batch_size=1)
    rolling = asked("loglikelihood_rolling", (" ".join(TEXTS) * 4,), ("short",))
    assert len(tokenizer(rolling[0].args[0]).input_ids) > 2 * POSITIONS
    expected = theirs.loglikelihood_rolling(rolling, disable_tqdm=True)
    for requests_per_batch in (None, 1):
        ours.requests_per_batch = requests_per_batch
        assert ours.loglikelihood_rolling(rolling) == pytest.approx(expected, rel=1e-4)
    assert (ours.asked.requests, ours.asked.begin_with_bos, ours.asked.cut) == (4, 4, 0)
    begins = tokenizer.bos_token
    pairs = asked("loglikelihood", ("", "The value"), ("", f"{begins}The value"), ("a b", " c"))
    expected = theirs.loglikelihood(pairs, disable_tqdm=True)
    for (got, is_greedy), (value, was_greedy) in zip(
        ours.loglikelihood(pairs), expected, strict=True
    ):
        assert got == pytest.approx(value, rel=1e-4)
        assert is_greedy == was_greedy


@torch.no_grad()
def greedily(model, tokenizer, text):
    """Token after token, alone and without a cache."""
    ids = tokenizer(text).input_ids
    prompt = len(ids)
    for _ in range(NEW_TOKENS):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[prompt:], skip_special_tokens=True)


@pytest.mark.parametrize("rule", ["top_k", "threshold"])
def test_generation_is_that_of_each_prompt_alone_whatever_the_rule(model, tokenizer, rule):
    model.set_router_selection(rule)
    expected = [greedily(model, tokenizer, text) for text in TEXTS]
    reported = []
    lm = EvaluatedLM(model, tokenizer, lambda done, total: reported.append((done, total)))
    assert lm.generate_until(prompts()) == expected
    assert reported[-1][0] == reported[-1][1]
    # Under top-k, padding would be a token like any other.
    lengths = {len(tokenizer(text).input_ids) for text in TEXTS}
    assert len(lengths) > 1
    assert len(reported) == (len(lengths) if rule == "top_k" else 1)


def test_a_batch_that_does_not_fit_the_memory_is_halved_and_a_single_prompt_is_not(
    model, tokenizer, monkeypatch
):
    lm, generate, sizes = EvaluatedLM(model, tokenizer), model.generate, []
    expected = lm.generate_until(prompts())
    largest = 2

    def generate_few(**inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > largest:
            raise RuntimeError("CUDA out of memory.")
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", generate_few)
    assert lm.generate_until(prompts()) == expected
    assert sizes == [5, 2, 3, 1, 2]
    largest = 0
    with pytest.raises(RuntimeError, match="out of memory"):
        lm.generate_until(prompts())


def test_a_prompt_is_cut_where_the_harness_cuts_it(model, tokenizer):
    lm, texts = EvaluatedLM(model, tokenizer), [" ".join(TEXTS) * 4, "a b"]
    generated = prompts(texts)
    scored = asked("loglikelihood", *((text, " c") for text in texts))
    assert lm.cut([*generated, *scored]) == 2
    lm.generate_until(generated)
    lm.loglikelihood(scored)
    assert (lm.asked.requests, lm.asked.cut) == (4, 2)
    # To the token: a context of as many as fit beside the continuation, and one more.
    length = len(tokenizer(" c", add_special_tokens=False).input_ids)
    for more in (0, 1):
        context = [5] * (POSITIONS + 1 - length + more)
        assert lm._too_long([(context, [6] * length)]) == more
    for more in (0, 1):
        text = tokenizer.decode([5] * (POSITIONS - NEW_TOKENS - 1 + more))
        whole = len(tokenizer(text).input_ids) - (POSITIONS - NEW_TOKENS)
        assert lm.cut(prompts([text])) == (whole > 0)


def test_more_generated_tokens_than_the_model_takes_are_refused(model, tokenizer):
    lm = EvaluatedLM(model, tokenizer)
    with pytest.raises(UserError, match=r"^a task: 64 tokens are to be generated, but the model"):
        lm.generate_until(asked("generate_until", ("a", {"until": [], "max_gen_toks": POSITIONS})))
