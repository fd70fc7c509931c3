"""`callbacks.lm_eval`: tasks on the model in training, without a trace in what is trained."""

import json
import random

import pytest
import torch
import yaml

from eval.harness import measure
from eval.language_model import EvaluatedLM
from eval.lm_eval_callback import TaskEvaluation
from eval.suite import read_task_suite
from eval.task_data import open_tasks
from eval.task_figures import figure_of
from itt_composer.basics.errors import UserError
from itt_composer.runs.loading import load_folder_tokenizer, think_causally
from itt_composer.runs.metrics import read_metrics
from itt_composer.training.before_start import check_before_start
from itt_composer.training.training_run import TrainingRun

TEXTS = [f"The {thing} was shut. So she opened the {thing}" for thing in ("door", "window", "box")]
PERPLEXITY = "lm_eval/lambada_openai/perplexity"  # tells any change of the model


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "lambada_openai").mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (folder / "lambada_openai/test.jsonl").write_text(lines)
    return folder


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """One task, as a user's suite of their own."""
    file = tmp_path_factory.mktemp("suite") / "one.yaml"
    tasks = {"lambada_openai": {"shots": 0, "metric": "perplexity"}}
    file.write_text(yaml.safe_dump({"tasks": tasks, "bootstrap_iters": 0}))
    return file


@pytest.fixture
def overrides(suite, data_dir):
    return [f"callbacks.lm_eval={{suite: {suite}, eval_interval: 5ba, data_dir: {data_dir}}}"]


def test_the_last_figure_is_of_the_finished_model_and_random_states_are_left_alone(
    small_recipe, overrides, suite, data_dir, make_trainer, shards
):
    trainer, log = make_trainer(small_recipe(*overrides))
    trainer.fit()
    figures = {time.batch.value: value for time, value in log.data[PERPLEXITY]}
    assert list(figures) == [5, 10]
    assert figures[5] != figures[10]
    random.seed(5)
    torch.manual_seed(5)
    states = random.getstate(), torch.get_rng_state().tolist()
    for callback in trainer.state.callbacks:
        if isinstance(callback, TaskEvaluation):
            callback.eval_after_all(trainer.state, trainer.logger)
    assert (random.getstate(), torch.get_rng_state().tolist()) == states
    assert log.data[PERPLEXITY][-1][1] == figures[10]
    model = trainer.state.model.model
    assert model.config.router_selection == "top_k"
    assert model.training
    think_causally(model)
    tasks = read_task_suite(suite, {"data_dir": str(data_dir)})
    settings = tasks.selected_tasks()["lambada_openai"]
    with open_tasks(tasks.selected_tasks(), tasks.data_dir) as source:
        lm = EvaluatedLM(model.eval(), load_folder_tokenizer(str(shards / "tokenizer")))
        results = measure(tasks, "lambada_openai", settings, source, lm)
    assert figure_of(results.harness, "lambada_openai", None) == ("perplexity", figures[10])


def test_ranks_that_shard_the_model_ask_the_whole_one_and_train_as_if_they_had_not(
    fork_server, recipe_file, shards, overrides, tmp_path
):
    figures, losses = [], []
    for ranks, sharding, given in ((1, "none", []), (1, "none", overrides), (2, "fsdp", overrides)):
        folder = tmp_path / f"{ranks}-{len(given)}"
        places = [f"data.local={shards}", f"run_folder={folder}", f"train.sharding={sharding}"]
        lines = f"loggers.json_lines.path={folder}/metrics.jsonl"
        keys = ["train.eval_interval=5ba", *places, lines, *given]
        result = fork_server.run("itt_composer.train", recipe_file, *keys, ranks=ranks)
        assert result.returncode == 0, result.stderr
        assert ("batch 10 · lambada_openai" in result.stdout) == bool(given)
        logged = read_metrics(folder)
        figures.append([line[PERPLEXITY] for line in logged if PERPLEXITY in line])
        name = "loss/train/total"
        losses.append([line[name] for line in logged if name in line])
    assert [len(values) for values in figures] == [0, 2, 2]
    assert figures[2] == pytest.approx(figures[1], rel=1e-4)
    assert losses[1] == losses[0]
    assert len(losses[0]) == 10


def test_a_model_that_computes_nan_ends_training_with_the_tasks_name(
    small_recipe, overrides, make_trainer
):
    trainer, _ = make_trainer(small_recipe(*overrides))
    callbacks = [c for c in trainer.state.callbacks if isinstance(c, TaskEvaluation)]
    callbacks[0].fit_start(trainer.state, trainer.logger)
    with torch.no_grad():
        trainer.state.model.model.model.norm.weight[0] = torch.nan
    with pytest.raises(UserError, match=r"^lambada_openai: the model computes NaN .*norm\.weight"):
        callbacks[0]._evaluate(trainer.state, callbacks[0]._source)


def start(recipe):
    for callback in recipe.callbacks.build():
        callback.fit_start(None, None)


MISTAKES = {
    "{suite: eval/suites/perplexity.yaml}": "eval/suites/perplexity.yaml is not a suite of tasks",
    "{only: [piqua], eval_interval: 10ba}": "only names 'piqua', which is not one of the",
    "{data_dir: no/where, eval_interval: 10ba}": "data_dir=no/where is not a folder",
    "{eval_interval: 7ba}": "command line: callbacks.lm_eval.eval_interval=7ba is not a multiple",
    "{limit: 0}": "callbacks.lm_eval.limit=0: input should be greater than 0",
}


@pytest.mark.parametrize("settings", MISTAKES)
def test_a_mistake_is_reported_before_the_first_batch(small_recipe, settings):
    with pytest.raises(UserError) as caught:
        start(small_recipe(f"callbacks.lm_eval={settings}"))
    assert MISTAKES[settings] in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("settings", list(MISTAKES)[:3])
def test_a_mistake_in_the_tasks_is_reported_with_the_others_before_torch(small_recipe, settings):
    recipe = small_recipe(f"callbacks.lm_eval={settings}", "init_from=nowhere")
    with pytest.raises(UserError) as caught:
        check_before_start(recipe, TrainingRun(recipe))
    of_init, of_tasks = str(caught.value).splitlines()
    assert "init_from=nowhere" in of_init
    assert MISTAKES[settings] in of_tasks
