"""The running estimate of thresholds in a real training, and the calibration at its end."""

import pytest
import torch
from composer.core import Callback, Event
from composer.utils import dist

from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.calibration import calibrate, update_estimate, watched_scores
from itt_composer.models.composer_model import unwrap
from itt_composer.models.thresholds import quantiles_of
from itt_composer.training.heartbeat import Heartbeat
from itt_composer.training.threshold_estimate import ThresholdEstimate


class Tables(Callback):
    """The tables of the thinking layer, and whether they are all the same, after each batch."""

    def __init__(self):
        self.after = []

    def batch_end(self, state, logger):
        (layer,) = unwrap(state.model).thinking_layers
        self.after.append(layer.score_quantiles.clone())


class Interrupt(Callback):
    def batch_checkpoint(self, state, logger):
        if state.timestamp.batch.value == 6:
            raise InterruptedError


def are_alike(tables_AXQ):
    return bool((tables_AXQ == tables_AXQ[:1]).all())


def test_the_estimate_follows_training_and_ends_calibrated(small_recipe, make_trainer):
    recipe = small_recipe("algorithms.capacity_annealing.duration=0.5dur")
    watch = Tables()
    trainer, log = make_trainer(recipe, watch)
    (estimate,) = [a for a in trainer.state.algorithms if isinstance(a, ThresholdEstimate)]
    estimate.interval = 4
    trainer.fit()
    changes = [
        not torch.equal(before, after)
        for before, after in zip(watch.after, watch.after[1:], strict=False)
    ]
    # Looked at before batches 0, 4 and 8, and calibrated after the last one, the tenth.
    assert changes == [number in (4, 8, 9) for number in range(1, 10)]
    assert [are_alike(tables) for tables in watch.after] == [True] * 9 + [False]
    assert not watch.after[0].isnan().any()
    for label in ("eval", "eval_threshold"):
        assert f"metrics/{label}/LanguageCrossEntropy" in log.data
    assert unwrap(trainer.state.model).config.router_selection == "top_k"


@pytest.mark.parametrize(("ranks", "counts"), [(2, [1, 1]), (5, [1] * 5)])
def test_every_rank_calibrates_with_as_many_rows(
    small_recipe, make_trainer, monkeypatch, ranks, counts
):
    trainer, _ = make_trainer(small_recipe("train.calibration_rows=3"))
    (estimate,) = [a for a in trainer.state.algorithms if isinstance(a, ThresholdEstimate)]
    found = []
    for rank in range(ranks):
        monkeypatch.setattr(dist, "get_world_size", lambda: ranks)
        monkeypatch.setattr(dist, "get_global_rank", lambda rank=rank: rank)
        found.append(sum(len(b["input_ids"]) for b in estimate._calibration_batches(trainer.state)))
    monkeypatch.undo()
    assert found == counts


def test_a_calibration_takes_other_rows_than_an_evaluation_that_measures_some(
    small_recipe, make_trainer
):
    trainer, _ = make_trainer(small_recipe("train.calibration_rows=8", "train.eval_batches=2"))
    (estimate,) = [a for a in trainer.state.algorithms if isinstance(a, ThresholdEstimate)]
    loader = trainer.state.evaluators[0].dataloader.dataloader
    order = [tuple(row) for batch in loader for row in batch["input_ids"].tolist()]
    calibrated = [
        tuple(row)
        for batch in estimate._calibration_batches(trainer.state)
        for row in batch["input_ids"].tolist()
    ]
    assert calibrated == order[-8:]
    assert not set(calibrated) & set(order[: 2 * loader.batch_size])


def test_a_calibration_is_a_sign_of_life(small_recipe, make_trainer):
    trainer, _ = make_trainer(small_recipe())
    (estimate,) = [a for a in trainer.state.algorithms if isinstance(a, ThresholdEstimate)]
    (heartbeat,) = [c for c in trainer.state.callbacks if isinstance(c, Heartbeat)]
    beats = []
    heartbeat.progress.enter = beats.append
    estimate.apply(Event.BATCH_END, trainer.state, trainer.logger)
    rows = 256 // 4  # in batches of four; at one anchor in the middle and eight around it
    assert beats == ["evaluating"] * (9 * rows)


def test_training_in_epochs_anneals_within_them_and_ends_calibrated(
    small_recipe, make_trainer, capsys
):
    recipe = small_recipe(
        *("train.max_duration=1ep", "train.global_batch_size=64", "train.microbatch_size=64"),
        *("algorithms.capacity_annealing={}", "callbacks.console_lines.interval=4ba"),
        "train.calibration_rows=8",
    )
    watch = Tables()
    trainer, log = make_trainer(recipe, watch)
    trainer.fit()
    assert trainer.state.timestamp.epoch == 1
    assert len(watch.after) == trainer.state.dataloader_len > 4
    ratios = [ratio for _, ratio in log.data["capacity_annealing/select_ratio/step_2"]]
    assert ratios[0] == pytest.approx(0.1)
    assert ratios[-1] == 0.8
    assert [are_alike(tables) for tables in watch.after[-2:]] == [True, False]
    assert " · 100 % · " in capsys.readouterr().out


def test_evaluation_by_thresholds_is_another_than_by_top_k(small_recipe, make_trainer):
    trainer, log = make_trainer(small_recipe())
    trainer.fit()
    losses = [
        float(log.data[f"metrics/{label}/LanguageCrossEntropy"][-1][1])
        for label in ("eval", "eval_threshold")
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_model_without_routers_is_not_watched(small_recipe, make_trainer):
    recipe = small_recipe(
        "thinking.thinking=loop",
        "thinking.select_ratios=null",
        "algorithms.capacity_annealing=null",
    )
    trainer, _log = make_trainer(recipe)
    assert not any(isinstance(a, ThresholdEstimate) for a in trainer.state.algorithms)
    assert [evaluator.label for evaluator in trainer.state.evaluators] == ["eval"]


def build(**changes):
    torch.manual_seed(0)
    settings = {"thinking_steps": 3, "select_ratios": [0.5, 0.8], "initializer_range": 0.1}
    return IttForCausalLM(
        IttConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=2,
            **{**settings, **changes},
        )
    )


def batches(count=4, rows=16):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        ids = torch.randint(0, 64, (rows, 48), generator=generator)
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("ratios", [[0.5, 0.5], [1, 0.5], [0.2, 0.9], [0.7, 0.3], [0.9, 0]])
def test_calibrated_thresholds_take_the_share_that_was_asked_for(ratios):
    model = build()
    calibrate(model, list(batches()))
    model.set_router_selection("threshold")
    model.set_select_ratios(ratios)
    shares = {}
    with torch.no_grad():
        (fresh,) = batches(count=1, rows=64)
        model(
            **fresh,
            on_step=lambda done: shares.update(
                {(done.layer_idx, done.step): done.is_selected_BS.float().mean().item()}
            ),
        )
    asked = [ratio for ratio in ratios if ratio]
    for (_, step), share in shares.items():
        assert share == pytest.approx(asked[step - 1], abs=0.03)


def test_a_table_made_at_another_setting_takes_another_share():
    # Why there is a table per anchor: the running estimate knows the ratios in force only.
    model = build(initializer_range=0.3)
    data = list(batches())
    calibrate(model, data)
    tables = model.thinking_layers[-1].score_quantiles
    middle, others = tables[:1], tables[1:]
    assert (middle - others).abs().amax(dim=(1, 2)).min() > 0


def test_calibration_leaves_the_model_as_it_was_and_survives_a_stop():
    model = build().train()

    def stop(done, total):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        calibrate(model, list(batches()), on_progress=stop)
    assert model.training
    assert model.config.router_selection == "top_k"
    assert not model.has_thresholds
    assert not any(router._forward_hooks for router in model.thinking_layers[0].routers)


def test_calibration_needs_routers_and_batches():
    with pytest.raises(ValueError, match="no routers"):
        calibrate(build(thinking="loop", select_ratios=None), list(batches()))
    with pytest.raises(ValueError, match="no batch"):
        calibrate(build(), [])


def test_the_running_estimate_starts_with_the_first_look_and_then_moves():
    (layer, _) = build().thinking_layers
    first, second = torch.zeros(129), torch.ones(129)
    update_estimate(layer, 0, first, decay=0.75)
    assert (layer.score_quantiles[:, 0] == 0).all()
    assert layer.score_quantiles[:, 1].isnan().all()
    update_estimate(layer, 0, second, decay=0.75)
    assert (layer.score_quantiles[:, 0] == 0.25).all()


def test_scores_are_watched_before_tokens_are_selected_by_them():
    model = build()
    seen = []
    (batch,) = batches(count=1)
    with torch.no_grad(), watched_scores(model, lambda *scores: seen.append(scores)):
        model(**batch)
    assert [(layer.layer_idx, step) for layer, step, _ in seen] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    assert all(scores.shape == (16, 48) for *_, scores in seen)
    assert quantiles_of(seen[0][2])[-1] == seen[0][2].max()


@pytest.mark.parametrize(("name", "value"), [("interval", 0), ("decay", 1.0), ("decay", -0.1)])
def test_impossible_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must .*{value}"):
        ThresholdEstimate(**{name: value})
