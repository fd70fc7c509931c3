"""The logged shares are those of the rows that were trained on."""

import pytest

from itt_composer.training.watching.domain_shares import DomainShares, shares_of

SHARES = "data.domains={code: 3, prose: 1}"


def shares_in(log):
    return {
        name: [value.item() if hasattr(value, "item") else value for _, value in values]
        for name, values in log.data.items()
        if name.startswith("data/share/")
    }


def test_shares_add_up_to_one():
    assert shares_of({"code": 3, "prose": 1}) == {"code": 0.75, "prose": 0.25}


def test_the_realised_shares_are_logged_and_match_the_recipe(small_recipe, make_trainer):
    recipe = small_recipe(
        SHARES, "train.max_duration=100ba", "train.eval_interval=100ba", "train.save_interval=100ba"
    )
    callback = DomainShares(interval="40ba")
    trainer, log = make_trainer(recipe, callback)
    trainer.fit()
    logged = shares_in(log)
    assert set(logged) == {"data/share/code", "data/share/prose"}
    batches = [timestamp.batch.value for timestamp, _ in log.data["data/share/code"]]
    assert batches == [40, 80, 100]
    assert all(share == pytest.approx(0.75, abs=0.01) for share in logged["data/share/code"])
    assert sum(callback.rows.values()) == 100 * 4
    assert logged["data/share/code"][-1] == callback.rows["code"] / 400


def test_counts_go_on_after_a_resume(small_recipe, make_trainer):
    recipe = small_recipe(SHARES, "callbacks.domain_shares={interval: 1ba}")
    trainer, _ = make_trainer(recipe)
    trainer.fit(duration="7ba")
    trainer.close()
    trainer, log = make_trainer(recipe)
    assert trainer.state.timestamp.batch == 7
    trainer.fit()
    (callback,) = (x for x in trainer.state.callbacks if isinstance(x, DomainShares))
    assert sum(callback.rows.values()) == 10 * 4
    assert len(shares_in(log)["data/share/prose"]) == 3


def test_only_domains_of_the_run_are_logged(small_recipe, make_trainer):
    trainer, log = make_trainer(small_recipe("data.domains={prose: 2}"), DomainShares("5ba"))
    trainer.fit()
    assert shares_in(log) == {"data/share/prose": [1.0, 1.0]}
