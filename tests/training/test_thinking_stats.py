"""Statistics of thinking steps: the figures against plain loops, and what a training logs."""

import math

import pytest
import torch
from composer.core import Callback

from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.composer_model import unwrap
from itt_composer.training.watching.thinking_stats import ThinkingStats, moments_of, statistics_of

WATCHED = "callbacks.thinking_stats={interval: 4ba}"


def logged(log, part=""):
    """Values by key and batch."""
    return {
        key: {timestamp.batch.value: value for timestamp, value in values}
        for key, values in log.data.items()
        if key.startswith("thinking/") and part in key
    }


def naive(done, before):
    """The same figures, token by token in plain Python."""
    taken, again, changes, weights = 0, 0, [], []
    batch, tokens = done.is_selected_BS.shape
    for row in range(batch):
        for token in range(tokens):
            if done.weights_BS is not None:
                weights.append(done.weights_BS[row, token].item())
            if not done.is_selected_BS[row, token]:
                continue
            taken += 1
            again += before is not None and bool(before[row, token])
            old, new = done.old_BSD[row, token].tolist(), done.new_BSD[row, token].tolist()
            moved = math.dist(old, new)
            changes.append(moved / math.hypot(*old))
    figures = {"share_selected": taken / (batch * tokens), "update_norm": sum(changes) / taken}
    if weights:
        mean = sum(weights) / len(weights)
        spread = sum((weight - mean) ** 2 for weight in weights) / len(weights)
        figures |= {"weight_mean": mean, "weight_std": spread**0.5}
    if before is not None:
        figures["overlap"] = again / taken
    return figures


def seen_steps(model, ids):
    """Every `ThinkingStep` of one call."""
    seen = []
    with model.watching(seen.append):
        model(ids)
    return seen


@pytest.mark.parametrize(
    "thinking",
    [
        {"select_ratios": [0.4, 0.7, 1.0]},
        {"select_ratios": [0.4, 0.0, 0.3]},
        {"select_ratios": [0.4, 0.7, 0.2], "reweighting": "symmetric"},
        {"select_ratios": [0.5, 0.5, 0.5], "router_selection": "top_p"},
        {"thinking": "loop"},
    ],
    ids=["top-k", "a step left out", "symmetric", "top-p", "loop"],
)
def test_the_figures_are_those_of_a_loop_over_tokens(thinking):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    model = IttForCausalLM(
        IttConfig(
            vocab_size=64, num_hidden_layers=4, initializer_range=0.3, thinking_steps=4,
            **sizes, **thinking,
        )
    )  # fmt: skip
    before = {}
    steps = seen_steps(model, torch.randint(0, 64, (2, 20)))
    assert len({done.layer_idx for done in steps}) == 2
    for done in steps:
        last = before.get(done.layer_idx)
        moments = [moment.item() for moment in moments_of(done, last)]
        figures = statistics_of(moments, done.weights_BS is not None, last is not None)
        assert figures == pytest.approx(naive(done, last), rel=1e-5)
        before[done.layer_idx] = done.is_selected_BS


def test_a_step_that_nobody_takes_has_a_share_and_no_ratios():
    assert statistics_of([0.0, 0.5, 0.26, 0.0, 0.0], True, True) == pytest.approx(
        {"share_selected": 0, "weight_mean": 0.5, "weight_std": 0.1}
    )


class Kept(Callback):
    """The first microbatch and the weights of each batch."""

    def __init__(self):
        self.batches = {}

    def before_forward(self, state, logger):
        batch = state.timestamp.batch.value
        if batch not in self.batches:
            model = unwrap(state.model)
            weights = {name: value.clone() for name, value in model.state_dict().items()}
            self.batches[batch] = (state.batch["input_ids"], weights, model.config.select_ratios)


def test_a_training_logs_the_figures_of_its_first_microbatch_at_the_interval(
    small_recipe, make_trainer
):
    kept = Kept()
    recipe = small_recipe(
        WATCHED,
        "train.microbatch_size=2",
        "algorithms.capacity_annealing={duration: 0.5dur, start_ratio: [0.05, 0.1]}",
    )
    trainer, log = make_trainer(recipe, kept)
    trainer.fit()
    values = logged(log)
    model = unwrap(trainer.state.model)
    for batch in (0, 4, 8):
        ids, weights, ratios = kept.batches[batch]
        assert ids.shape == (2, 32)
        model.load_state_dict(weights)
        model.set_select_ratios(ratios)
        expected, last = {}, None
        for done in seen_steps(model.train(), ids):
            for name, value in naive(done, last).items():
                expected[f"thinking/layer_1/step_{done.step}/{name}"] = value
            last = done.is_selected_BS
        for step, encoding in enumerate(model.thinking_layers[0].step_encoding.tolist()):
            key = f"thinking/layer_1/step_{step}/step_encoding_mean"
            expected[key] = sum(encoding) / len(encoding)
        at_batch = {key: of[batch] for key, of in values.items() if batch in of}
        assert at_batch == pytest.approx(expected, rel=1e-4)
    assert {batch for of in values.values() for batch in of} == {0, 4, 8}
    assert "thinking/layer_1/step_1/overlap" not in values


@pytest.mark.parametrize("kind", ["loop", "dense"])
def test_without_routers_there_are_no_weights_and_without_thinking_nothing(
    small_recipe, make_trainer, kind
):
    trainer, log = make_trainer(
        small_recipe(
            WATCHED,
            f"thinking={{thinking: {kind}, thinking_steps: null, select_ratios: null}}",
            "train.max_duration=1ba",
        )
    )
    trainer.fit()
    names = {key.rpartition("/")[2] for key in logged(log)}
    assert names == ({"share_selected", "update_norm", "overlap"} if kind == "loop" else set())


@pytest.mark.parametrize("interval", ["0ba", "1ep"])
def test_an_impossible_interval_is_refused(interval):
    with pytest.raises(ValueError, match=f"interval must be a number of batches.*{interval}"):
        ThinkingStats(interval)
