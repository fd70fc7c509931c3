"""Likelihoods of shared prefixes and contexts equal those of one text after the other."""

import pytest
import torch
from causal_models import build
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

from eval.task_notes import Asked
from itt_composer.basics.errors import UserError
from itt_composer.models.likelihood_batches import Question, QuestionBatch, plan, share_out
from itt_composer.models.likelihoods import Scorer, tolerance

VOCABULARY = 96
MAX_LENGTH = 60
SMALL = {"vocab_size": VOCABULARY, "initializer_range": 0.15}


def gpt2():
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, **SMALL)
    return GPT2LMHeadModel(config)


def pythia():
    config = GPTNeoXConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        **SMALL,
    )
    return GPTNeoXForCausalLM(config)


def itt(**settings):
    model = build("itt")
    for name, value in settings.items():
        getattr(model, f"set_{name}")(value)
    return model


MODELS = {
    "dense": lambda: build("dense"),
    "loop": lambda: build("loop"),
    "itt": itt,
    "itt that exits early": lambda: itt(early_exit=0.6),
    "itt at other ratios": lambda: itt(select_ratios=[0.9, 0.0, 0.4]),
    "itt by top-k": lambda: itt(router_selection="top_k"),
    "gpt2": gpt2,
    "pythia": pythia,
}


@pytest.fixture(params=MODELS)
def model(request):
    """In float64: two ways to add in float32 may take a token over its threshold."""
    torch.manual_seed(0)
    return MODELS[request.param]().double().eval()


def tokens(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()


def asked():
    """Few-shot questions with a common beginning, others alone, some too long for the model."""
    examples = tokens(34, 0)
    requests = []
    for number in range(10):
        context = examples + tokens(3 + number % 4, 1 + number)
        requests += [(context, [5]), (context, [6])]
        requests.append((context, tokens(1 + number % 5, 40 + number)))
    for number in range(4):
        context = tokens(4 + 9 * number, 80 + number)
        requests += [(context, tokens(length, 90 + length)) for length in (2, 7)]
    requests.append((tokens(58, 99), tokens(9, 98)))
    requests.append((tokens(7, 97), tokens(1, 96)))
    requests.append(requests[3])
    return requests


def one_after_the_other(model, requests):
    likelihoods = []
    for context, continuation in requests:
        ids = torch.tensor([(context + continuation)[-(MAX_LENGTH + 1) :]])
        with torch.no_grad():
            logits = model(ids[:, :-1], use_cache=False).logits[0].double()
        predicted = logits.log_softmax(-1)[-len(continuation) :]
        likelihoods.append(
            (
                sum(predicted[place, token].item() for place, token in enumerate(continuation)),
                predicted.argmax(-1).tolist() == continuation,
            )
        )
    return likelihoods


def scored(scorer, batches, count):
    known = {}
    for batch in batches:
        known |= scorer.score(batch)
    return [known[index] for index in range(count)]


def test_every_likelihood_is_that_of_its_text_alone(model):
    requests, scorer = asked(), Scorer(model)
    can_share = scorer.can_share()
    expected = one_after_the_other(model, requests)
    for batch_size in (None, 1, 7):
        batches = plan(requests, MAX_LENGTH, batch_size, 400, can_share, not scorer.looks_ahead)
        assert any(batch.prefix for batch in batches) == can_share
        likelihoods = scored(scorer, batches, len(requests))
        # The softmax is taken in float32.
        values = [value for value, _ in likelihoods]
        assert values == pytest.approx([value for value, _ in expected], abs=3e-6 * MAX_LENGTH)
        assert [greedy for _, greedy in likelihoods] == [greedy for _, greedy in expected]


def test_what_looks_ahead_or_has_no_cache_is_found_out():
    assert Scorer(itt().double()).can_share()
    assert not Scorer(itt(router_selection="top_k").double()).can_share()
    forgetful = pythia().double().eval()
    forward = forgetful.forward
    forgetful.forward = lambda past_key_values=None, use_cache=None, position_ids=None, **rest: (
        forward(**rest)
    )
    assert not Scorer(forgetful).can_share()


def test_passes_are_compared_in_the_precision_they_are_made_in():
    model = build("itt")
    assert tolerance(model) == 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        assert tolerance(model) == 0.25
    assert tolerance(model.to(torch.bfloat16)) == 0.25


def test_greedy_continuations_are_marked():
    model = build("dense").double()

    def go_on(*prompt):
        with torch.no_grad():
            ids = model.generate(torch.tensor([prompt]), max_new_tokens=3, do_sample=False)
        return ids[0, len(prompt) :].tolist()

    context = tokens(8, 0)
    first, second, third = go_on(*context)
    other = (first + 1) % VOCABULARY
    continuations = {
        (first, second, third): True,
        (first, second, (third + 1) % VOCABULARY): False,
        (first,): True,
        (other, *go_on(*context, other)): False,  # what follows its first token is greedy
    }
    requests = [(context, list(continuation)) for continuation in continuations]
    batches = plan(requests, MAX_LENGTH, None, 400, can_share=True)
    assert batches[0].is_split
    answers = [is_greedy for _, is_greedy in scored(Scorer(model), batches, len(requests))]
    assert answers == list(continuations.values())


def test_batches_hold_every_request_once_and_no_more_than_asked_for():
    requests = asked()
    for batch_size, most in ((None, 300), (5, None)):
        batches = plan(requests, MAX_LENGTH, batch_size, most or 300, can_share=True)
        numbers = [
            number
            for batch in batches
            for question in batch.questions
            for requests_of in question.continuations.values()
            for number in requests_of
        ]
        assert sorted(numbers) == list(range(len(requests)))
        for batch in batches:
            assert len(batch.questions) == 1 or (
                batch.rows <= 5 if batch_size else batch.cost <= 300
            )


def test_a_few_questions_that_begin_alike_are_no_family():
    examples = tokens(40, 0)
    few = [(examples + tokens(3, seed), [5]) for seed in range(4)]
    many = [(examples + tokens(3, seed), [5]) for seed in range(20)]
    assert [batch.prefix for batch in plan(few, MAX_LENGTH, None, 4000, True)] == [()]
    assert [len(batch.prefix) for batch in plan(many, MAX_LENGTH, None, 4000, True)] == [40]


def test_an_answer_longer_than_the_model_is_refused():
    assert plan([(tokens(3, 0), tokens(MAX_LENGTH, 1))], MAX_LENGTH, None, 400, True)
    too_long = [(tokens(3, 0), tokens(MAX_LENGTH + 1, 1))]
    with pytest.raises(UserError, match=r"of piqa has 61 .* takes 60: .*tasks\.piqa=null"):
        plan(too_long, MAX_LENGTH, None, 400, True, task="piqa")


def test_of_requests_that_were_cut_some_may_have_had_whole_shots():
    (note,) = Asked(requests=8, cut=3).notes(60, 25)
    assert note.startswith("3 of 8 requests are longer than the model's 60 tokens")
    assert note.endswith(": these had no 25 whole shots; shots_that_fit=true asks all with fewer")
    assert Asked(requests=8, cut=3).notes(60, 0)[0].endswith("as in lm-eval")


def test_shares_of_ranks_are_disjoint_whole_and_even():
    costs = [90, 70, 40, 30, 20, 10, 5]
    shares = share_out(costs, 3)
    assert sorted(place for share in shares for place in share) == list(range(len(costs)))
    assert max(sum(costs[place] for place in share) for share in shares) == 90


class SmallMemory(torch.nn.Module):
    """Fails as a full GPU does where more than so many tokens come at once."""

    def __init__(self, model, most):
        super().__init__()
        self.model, self.most, self.config, self.device = model, most, model.config, model.device
        self.passes = 0

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def forward(self, input_ids, position_ids=None, **inputs):
        if input_ids.numel() > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        self.passes += 1
        return self.model(input_ids, position_ids=position_ids, **inputs)


def test_a_batch_that_does_not_fit_the_memory_is_halved_until_it_does():
    model, requests = build("itt").double(), asked()
    expected = scored(Scorer(model), plan(requests, MAX_LENGTH, None, 4000, True), len(requests))
    small = SmallMemory(model, 120)
    halved = scored(Scorer(small), plan(requests, MAX_LENGTH, None, 4000, True), len(requests))
    assert small.passes > 5
    assert [value for value, _ in halved] == pytest.approx([value for value, _ in expected])


def test_a_question_that_never_fits_is_reported():
    question = Question(tuple(tokens(20, 0)), {(5,): [0]})
    with pytest.raises(UserError, match="1 continuations of 21 tokens do not fit into the memory"):
        Scorer(SmallMemory(build("itt"), 10)).score(QuestionBatch((), [question], is_split=False))


def test_another_error_is_not_taken_for_a_full_memory():
    question = Question((200_000,), {(5,): [0]})
    with pytest.raises(IndexError):
        Scorer(build("itt")).score(QuestionBatch((), [question], is_split=False))
