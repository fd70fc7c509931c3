"""Weights & Biases without a network: one run for all starts, with the recipe in it."""

import os

import pytest
import wandb

from itt_composer.basics.errors import UserError


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_RUN_ID", "WANDB_RESUME"):  # set by the code: put back in the end
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    wandb.teardown()  # what it has read of the environment


@pytest.mark.usefixtures("offline")
def test_a_resumed_run_goes_on_in_the_run_it_began(small_recipe, make_trainer, monkeypatch):
    recipe = small_recipe("loggers.wandb.project=test")
    ids = []
    for ranks in (1, 2):
        for name in ("WANDB_RUN_ID", "WANDB_RESUME"):
            monkeypatch.delenv(name, raising=False)
        trainer, _ = make_trainer(recipe)
        trainer.logger.log_hyperparameters({"num_nodes": ranks})  # differs after a resume
        ids.append(wandb.run.id)
        assert os.environ["WANDB_RESUME"] == "allow"
        assert wandb.config["num_nodes"] == ranks
        assert wandb.config["thinking"]["select_ratios"] == recipe.thinking.select_ratios
        wandb.finish()
    assert ids[0] == ids[1]


@pytest.mark.usefixtures("offline")
def test_a_missing_login_is_one_sentence(small_recipe, make_trainer, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))  # where a login would be kept
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(
        UserError, match=r"loggers.wandb: .*; log in .`wandb login`., set WANDB_MODE"
    ):
        make_trainer(small_recipe("loggers.wandb.project=test"))
