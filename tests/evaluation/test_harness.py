"""Task suites: the harness's own numbers, on any number of ranks, and nothing measured twice."""

import json
import multiprocessing
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lm_eval import simple_evaluate
from safetensors.torch import load_file, save_file
from small_recipe import RECIPE
from small_task_data import make_task_data
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import itt_composer.recipe.schema
from eval import harness
from eval.__main__ import app
from eval.harness_files import write_harness_results
from eval.suite import load_suite
from eval.task_data import open_tasks
from itt_composer.models.building import model_of_recipe
from itt_composer.models.calibration import calibrate
from itt_composer.models.folder import write_model_folder
from itt_composer.paper.task_report import AVERAGE_OF_TEN, compared_row, lines_of

SUITE = Path(__file__).parents[2] / "eval/suites/eleven_tasks.yaml"
FEW = "only=[piqa,winogrande,arc_challenge,lambada_openai,nq_open]"


class Silent:
    """Hears of progress and says nothing."""

    def __init__(self):
        self.lines = []

    def start(self, measurement, number, total):
        self.lines.append(measurement.task)

    def go_on(self, done, total):
        pass

    def end(self, measurement, model, text, result):
        self.lines[-1] += f" {text}"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """All eleven tasks, made up: a few documents of each."""
    return make_task_data(tmp_path_factory.mktemp("tasks"), documents=4)


@pytest.fixture(scope="module")
def make_folder(shards, tmp_path_factory):
    """Write a small random ITT with thresholds and a tokenizer."""

    def make(seed):
        file = tmp_path_factory.mktemp("recipe") / "small.yaml"
        file.write_text(RECIPE)
        places = [f"data.local={shards}", "model.max_position_embeddings=1024"]
        recipe = itt_composer.recipe.schema.load_recipe(
            file, [*places, "model.initializer_range=0.2"]
        )
        torch.manual_seed(seed)
        model = model_of_recipe(recipe)
        ids = torch.randint(3, 512, (8, 32))
        calibrate(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
        folder = tmp_path_factory.mktemp("model") / "model"
        write_model_folder(folder, model, "", shards / "tokenizer")
        return folder

    return make


@pytest.fixture(scope="module")
def model(make_folder):
    return make_folder(0)


@pytest.fixture
def run(model, data_dir, tmp_path):
    def run(*overrides, path=model, limit="limit=3"):
        given = [f"model={path}", f"data_dir={data_dir}", f"output={tmp_path / 'out'}", limit]
        progress = Silent()
        results = harness.run_task_suite(load_suite(SUITE, [*given, *overrides]), progress)
        return results, progress.lines

    return run


def samples_of(folder, task):
    (file,) = folder.glob(f"tasks/{task}-*.samples.jsonl")
    lines = map(json.loads, file.read_text().splitlines())
    return {(line["task"], line["doc_id"]): line for line in lines}


def test_every_item_is_as_lm_eval_has_it_for_the_folder(run, model, data_dir, tmp_path):
    results, _ = run("log_samples=true", "tasks.mmlu=null", "tasks.mmlu_stem.shots=5")
    tasks = load_suite(SUITE, [f"model={model}", "tasks.mmlu=null", "tasks.mmlu_stem.shots=5"])
    compared = 0
    with open_tasks(tasks.selected_tasks(), str(data_dir)) as source:
        for name, settings in tasks.selected_tasks().items():
            theirs = simple_evaluate(
                model="hf",
                model_args={"pretrained": str(model), "device": "cpu"},
                tasks=[name],
                num_fewshot=settings.shots,
                batch_size=2,
                limit=3,
                bootstrap_iters=0,
                task_manager=source.manager,
            )
            ours = samples_of(tmp_path / "out", name)
            for leaf, logged in theirs["samples"].items():
                for sample in logged:
                    mine = ours[leaf, sample["doc_id"]]
                    hashes = ("doc_hash", "prompt_hash", "target_hash")
                    assert [mine[key] for key in hashes] == [sample[key] for key in hashes]
                    check_answers(mine["filtered_resps"], sample["filtered_resps"])
                    assert all(
                        mine[metric] == sample[metric]
                        for metric in mine["metrics"]
                        if metric != "perplexity"
                    )
                    compared += 1
            value = results.tasks[name].value
            metric = results.tasks[name].metric
            figures = theirs["results"][name]
            assert value == next(v for k, v in figures.items() if k.partition(",")[0] == metric)
    assert compared == 10 * 3 + 19 * 1


def test_a_metric_that_is_resampled_needs_no_pool_of_processes(run, monkeypatch):
    def pool(*_):
        raise AssertionError("a pool, whose processes may stay when they inherit a handler")

    monkeypatch.setattr(multiprocessing, "Pool", pool)
    results, _ = run("only=[lambada_openai]", "tasks.lambada_openai.metric=perplexity")
    assert results.tasks["lambada_openai"].stderr > 0


CUT = ["boolq", "arc_challenge", "nq_open"]  # by the 1,024 positions of these models


def test_requests_that_are_cut_are_counted_in_table_results_and_on_the_console(
    model, data_dir, tmp_path
):
    given = arguments(model, data_dir, tmp_path, f"only=[piqa,{','.join(CUT)}]")
    result = invoke(*given, "fewshot_seeds=[1,2]")
    assert result.exit_code == 0, result.output
    tasks = json.loads((tmp_path / "results.json").read_text())["tasks"]
    counts = {name: tuple(task.values()) for name, task in cuts(tasks)}
    questions = (data_dir / "arc_challenge/test.jsonl").read_text().splitlines()[:3]
    choices = sum(len(json.loads(question)["choices"]["text"]) for question in questions)
    assert counts == {
        "piqa": (6, 0),
        "arc_challenge": (2 * choices, 2 * choices),
        "boolq": (12, 12),
        "nq_open": (6, 6),
    }
    sentence = (
        "longer than the model's 1,024 tokens and lost their first ones, as in lm-eval: these had "
        "no 32 whole shots"
    )
    assert result.stderr.count(sentence) == 4  # two tasks, two seeds
    assert f"boolq: 6 of 6 requests are {sentence}" in result.stdout
    (row,) = [line for line in result.stdout.splitlines() if line.startswith(" boolq")]
    assert "12 of 12" in row
    assert (tmp_path / "results.md").read_text().count(sentence) == 2
    warning = "lm-eval warns: [Task: boolq] metric acc is defined, but aggregation is not"
    assert result.stderr.count(warning) == 1
    assert tasks["boolq"]["warnings"][0] in warning + ". using default aggregation=mean"


def cuts(tasks):
    """Requests and how many of them were cut, over all runs of a task."""
    for name, task in tasks.items():
        yield (
            name,
            {key: sum(run[key] for run in task["runs"]) for key in ("requests", "requests_cut")},
        )


def test_whole_shots_that_fit_give_what_so_many_shots_give_and_one_more_is_cut(run, tmp_path):
    few = "only=[boolq,arc_challenge]"
    fitting = run(few, "shots_that_fit=true", "log_samples=true")[0].tasks
    hashes = {task: prompts_of(tmp_path / "out", task) for task in fitting}
    shutil.rmtree(tmp_path / "out")
    shots = {name: fitting[name].shots for name in fitting}
    for name, whole in {"boolq": 32, "arc_challenge": 25}.items():
        assert 0 < shots[name] < whole
        given = (
            f"{shots[name]} of {whole} shots, the most that 1,024 tokens hold whole before every"
        )
        assert fitting[name].notes == [f"{given} question"]
    as_many = [f"tasks.{name}.shots={number}" for name, number in shots.items()]
    given = run(few, *as_many, "log_samples=true")[0].tasks
    assert {task: prompts_of(tmp_path / "out", task) for task in fitting} == hashes
    assert [given[name].value for name in fitting] == [fitting[name].value for name in fitting]
    assert set(requests_cut(given).values()) == {0}
    one_more = [f"tasks.{name}.shots={number + 1}" for name, number in shots.items()]
    assert all(requests_cut(run(few, *one_more)[0].tasks).values())


def prompts_of(folder, task):
    return [sample["prompt_hash"] for sample in samples_of(folder, task).values()]


def requests_cut(tasks):
    return {name: sum(run.requests_cut for run in task.runs) for name, task in tasks.items()}


def test_shots_that_all_fit_are_asked_whole(run):
    results, _ = run("only=[arc_challenge]", "tasks.arc_challenge.shots=2", "shots_that_fit=true")
    assert (
        results.tasks["arc_challenge"].shots,
        results.tasks["arc_challenge"].notes,
    ) == (
        2,
        [],
    )


@pytest.fixture(scope="module")
def overflowing(model, tmp_path_factory):
    """A model of finite weights; of the logits of each token one is infinity, one minus that."""
    folder = tmp_path_factory.mktemp("overflowing") / "model"
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = 1e6
    weights["lm_head.weight"][5, 0] = 3e38
    weights["lm_head.weight"][6, 0] = -3e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("task", ["piqa", "nq_open"])  # by likelihoods, and by generated text
def test_a_model_that_computes_nan_or_infinity_has_no_score(run, overflowing, tmp_path, task):
    with pytest.raises(harness.UserError) as caught:
        run(f"only=[{task}]", "tasks.nq_open.shots=0", path=overflowing)
    assert str(caught.value) == (
        f"{task}: the model computes NaN or infinity, so there is no score; its weights are "
        "finite, but too large to compute with: evaluate another checkpoint"
    )
    assert not list(tmp_path.glob("out/tasks/*"))


def test_two_ranks_refuse_an_overflow_alike(fork_server, overflowing, data_dir, tmp_path):
    given = arguments(overflowing, data_dir, tmp_path / "out", "only=[piqa]")
    result = fork_server.run("eval", *given, ranks=2)
    assert result.returncode == 1
    assert result.stderr.startswith("error: piqa: the model computes NaN or infinity")
    assert "Traceback" not in result.stderr


def test_a_limit_is_a_number_of_documents_or_a_share(run):
    results, _ = run("only=[piqa,arc_challenge]", "tasks.piqa.limit=0.3", limit="limit=0.5")
    counts = {name: task.documents for name, task in results.tasks.items()}
    assert counts == {"piqa": 2, "arc_challenge": 2}  # rounded up, as lm-eval does


def test_a_perplexity_of_texts_says_that_bos_is_predicted_after_bos(run, model, tmp_path):
    (tmp_path / "data/wikitext").mkdir(parents=True)
    pages = ["".join(json.dumps({"page": text}) + "\n" for text in ("A river.", "= Stone =\n"))]
    (tmp_path / "data/wikitext/test.jsonl").write_text("".join(pages))
    (tmp_path / "data/wikitext/validation.jsonl").write_text("".join(pages))
    (tmp_path / "data/wikitext/train.jsonl").write_text("".join(pages))
    results, _ = run(
        *("tasks.wikitext={}", "only=[wikitext]", f"data_dir={tmp_path / 'data'}", "limit=null")
    )
    lm = AutoModelForCausalLM.from_pretrained(model).eval()
    bos = lm.config.bos_token_id
    nats = -float(lm(torch.tensor([[bos]])).logits[0, 0].log_softmax(-1)[bos])
    assert results.tasks["wikitext"].notes == [
        "each of 2 texts begins with a BOS that is predicted after another BOS, as in lm-eval: "
        f"{nats:.1f} nats per text in this figure do not belong to the text"
    ]


def check_answers(ours, theirs):
    """Likelihoods but for rounding, everything else exactly."""
    for mine, other in zip(ours, theirs, strict=True):
        if isinstance(other, str):
            assert mine == other
        else:
            assert float(mine[0]) == pytest.approx(other[0], abs=1e-4)
            assert mine[1] in (other[1], str(other[1]))


def test_what_is_finished_is_not_measured_again_unless_something_changed(
    run, data_dir, tmp_path, monkeypatch
):
    few = "only=[piqa,arc_challenge]"
    first, lines = run(few)
    assert all("found finished" not in line for line in lines)
    again, lines = run(few)
    assert [line.split()[-2:] for line in lines] == [["found", "finished"]] * 2
    assert again == first
    for change, redone in {
        "model.select_ratios=[0.9,0.1]": ["piqa", "arc_challenge"],
        "fewshot_seeds=[7]": ["arc_challenge"],
        "tasks.arc_challenge.shots=3": ["arc_challenge"],
        "tasks.piqa.limit=2": ["piqa"],
        "batch_size=1": [],
    }.items():
        _, lines = run(few, change)
        assert [line.split()[0] for line in lines if "found" not in line] == redone, change
    file = data_dir / "piqa/validation.jsonl"
    text = file.read_text()
    try:
        file.write_text(text.replace('"label": 0', '"label": 1', 1))
        _, lines = run(few)
        assert [line.split()[0] for line in lines if "found" not in line] == ["piqa"]
    finally:
        file.write_text(text)
    assert run(few)[0] == first


SUMMARY = {
    **{"run_name": "run", "thinking": "itt", "thinking_steps": 4, "parameters": 1000},
    **{"batches": 900, "tokens": 9000, "train_seconds": 1.0, "validation_loss": 3.0},
}


def test_several_runs_have_a_mean_and_an_error_over_them(run, make_folder):
    folders = [make_folder(number).parent for number in (1, 2)]
    for number, folder in enumerate(folders):  # as run folders
        (folder / "summary.json").write_text(json.dumps(SUMMARY))
        (folder / "shards.json").write_text('{"train/c4": "rows"}')
        (folder / "recipe.yaml").write_text(f"seed: {number}\n" + RECIPE)
    path = f"[{folders[0]},{folders[1]}]"
    results, lines = run("only=[piqa,arc_challenge]", "fewshot_seeds=[1,2,3]", path=path)
    assert [model.trained_batches for model in results.models] == [900, 900]
    piqa, arc = results.tasks["piqa"], results.tasks["arc_challenge"]
    assert len(lines) == 2 * (1 + 3)
    assert [run.fewshot_seed for run in piqa.runs] == [None, None]
    assert [run.fewshot_seed for run in arc.runs] == [1, 2, 3] * 2
    assert len({model.sha256 for model in results.models}) == 2
    values = [run.value for run in arc.runs]
    mean = sum(values) / 6
    assert arc.value == pytest.approx(mean)
    variance = sum((value - mean) ** 2 for value in values) / 5
    assert arc.standard_error == pytest.approx((variance / 6) ** 0.5)
    assert arc.stderr == pytest.approx(sum(run.stderr for run in arc.runs) / 6)


def arguments(model, data_dir, output, *overrides):
    places = [f"model={model}", f"data_dir={data_dir}", f"output={output}", "limit=3"]
    return [SUITE, *places, *overrides]


def without_times(folder):
    results = json.loads((folder / "results.json").read_text())
    results["suite"].pop("output")
    for figures in results["tasks"].values():
        for run in figures["runs"]:
            run.pop("seconds")
    return results


def test_two_ranks_give_the_table_of_one_and_a_suite_goes_on_after_a_kill_and_after_ctrl_c(
    fork_server, model, data_dir, tmp_path
):
    one = fork_server.run("eval", *arguments(model, data_dir, tmp_path / "one", FEW))
    assert one.returncode == 0, one.stderr
    killed = fork_server.start("eval", *arguments(model, data_dir, tmp_path / "two", FEW), ranks=2)
    killed.wait_until(lambda: list(tmp_path.glob("two/tasks/winogrande-*.json")))
    killed.signal(signal.SIGKILL)
    assert set(killed.wait(alone=True).returncodes) == {-signal.SIGKILL}
    assert not (tmp_path / "two/results.json").exists()
    assert not list(tmp_path.glob("two/tasks/*.partial"))
    ended = fork_server.start("eval", *arguments(model, data_dir, tmp_path / "two", FEW), ranks=2)
    ended.wait_until(lambda: list(tmp_path.glob("two/tasks/arc_challenge-*.json")))
    ended.signal(signal.SIGINT)
    result = ended.wait(alone=True)
    assert result.returncodes == [130, 0]
    assert result.stderr.splitlines()[-1] == (
        f"ended by Ctrl-C; finished tasks are kept in {tmp_path}/two/tasks, and the same command "
        "goes on with the next"
    )
    assert "Traceback" not in result.stderr
    two = fork_server.run("eval", *arguments(model, data_dir, tmp_path / "two", FEW), ranks=2)
    assert two.returncode == 0, two.stderr
    assert two.stderr.count("found finished") >= 2
    assert without_times(tmp_path / "two") == without_times(tmp_path / "one")
    table = one.stdout.partition("results in")[0]
    assert table == two.stdout.partition("results in")[0]
    for task in ("piqa", "winogrande", "arc_challenge", "lambada_openai", "nq_open"):
        assert f" {task} " in table


def invoke(*given):
    return CliRunner().invoke(app, [str(argument) for argument in given])


def test_the_files_hold_the_table(model, data_dir, tmp_path):
    given = arguments(model, data_dir, tmp_path, "only=[piqa,arc_challenge]", "log_samples=true")
    result = invoke(*given, "compare_with=ITT×4-162M", "fewshot_seeds=[1,2]")
    assert result.exit_code == 0, result.output
    assert "…" not in result.output  # nothing was cut off
    table = (tmp_path / "results.md").read_text()
    assert "| arc_challenge | acc_norm | 25 | 3 |" in table
    assert "| 20.5 |" in table
    rows = [line.split(",") for line in (tmp_path / "results.csv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["task", "piqa", "arc_challenge"]
    assert float(rows[1][rows[0].index("paper")]) == 63.9
    results = json.loads((tmp_path / "results.json").read_text())
    folders = sorted((tmp_path / "lm_eval").iterdir())
    assert [folder.name[-5:] for folder in folders] == ["seed1", "seed2"]
    for folder in folders:
        theirs = json.loads((folder / "results.json").read_text())
        assert theirs["results"]["piqa"]["acc,none"] == results["tasks"]["piqa"]["value"]
        assert theirs["n-shot"] == {"arc_challenge": 25, "piqa": 0}
        assert len((folder / "samples_arc_challenge.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("path", ["..", ".", "./"])
def test_a_model_in_the_folder_at_hand_or_above_leaves_the_results_in_place(
    path, tmp_path, monkeypatch
):
    (tmp_path / "out/tasks").mkdir(parents=True)
    (tmp_path / "run/inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run/inside")
    results = SimpleNamespace(
        suite=SimpleNamespace(fewshot_seeds=[1]), models=[SimpleNamespace(path=path)], tasks={}
    )
    write_harness_results(results, tmp_path / "out")
    assert (tmp_path / "out/tasks").is_dir()
    name = "__".join((tmp_path / "run/inside" / path).resolve().parts[1:])
    assert (tmp_path / "out/lm_eval" / name / "results.json").is_file()


MISTAKES = {
    ("tasks.piqqa={}", "only=[piqqa]"): "piqqa: lm-eval has no such task; did you mean piqa",
    ("only=[sciqq]",): "only names 'sciqq', which is not one of the tasks; add tasks.sciqq",
    (
        "tasks.piqa.metric=f1",
    ): "tasks.piqa.metric=f1 is not one of the task's metrics: acc, acc_norm",
    ("limit=1.5",): "limit: 1.5 is neither a number of documents nor a share of them below",
    ("limit=0",): "limit=0: input should be greater than 0",
    ("tasks.piqa.shots=-1",): "tasks.piqa.shots=-1: input should be greater than or equal to 0",
    ("compare_with=ITTx4-162M",): "the paper's Table 1 has no row 'ITTx4-162M'; did you mean",
    ("data_dir=no/where",): "data_dir=no/where is not a folder",
    ("model=no/such/place",): "model=no/such/place is not there; name a run folder, a checkpoint",
    ("batch_size=fast",): 'batch_size="fast": should be a positive integer or "auto"',
    ("model.router_selection=top",): 'model.router_selection="top": input should be',
    ("model.select_ratios=[0.5]",): "select_ratios=[0.5]: select_ratios has 1 value, but",
    ("model.tokenizer=eval",): "the tokenizer in eval cannot be loaded",
    ("data_dir=null",): "the data of piqa cannot be loaded (",
    ("tasks.humaneval={}", "only=[humaneval]", "data_dir=null"): "humaneval runs code that the",
    (
        *("tasks.truthfulqa_mc1.shots=5", "only=[truthfulqa_mc1]", "data_dir=null"),
    ): "tasks.truthfulqa_mc1.shots=5: lm-eval asks this task without examples; set it to 0 or",
    ("fewshot_seeds=[1,1]",): "fewshot_seeds: 1 stands there twice; a repeat of the same run",
    ("model.revision=main",): "model.revision=main is of a model on the hub, but model=",
    ("only=[]",): "tasks: none is left; give some, or names in only",
    ("output=README.md",): "output=README.md is a file; name a folder for the results",
}


@pytest.mark.parametrize("override", MISTAKES, ids=" ".join)
def test_a_mistake_is_reported_in_one_sentence(model, data_dir, tmp_path, override):
    result = invoke(*arguments(model, data_dir, tmp_path / "out", "only=[piqa]"), *override)
    assert result.exit_code == 1
    assert MISTAKES[override] in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_all_missing_files_are_reported_at_once_before_torch_is_imported(
    model, data_dir, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "eval.harness", None)  # which imports torch
    data = shutil.copytree(data_dir, tmp_path / "data")
    shutil.rmtree(data / "piqa")
    (data / "boolq/train.jsonl").unlink()
    result = invoke(*arguments(model, data, tmp_path / "out", "only=[piqa,sciq,boolq]"))
    assert result.exit_code == 1
    assert [line.partition(" with ")[0] for line in result.stderr.splitlines()] == [
        f"error: data_dir={data} has no piqa/validation.parquet (or .jsonl)",
        f"data_dir={data} has no boolq/train.parquet (or .jsonl)",
    ]


def test_what_is_no_repeat_of_an_experiment_is_refused(run, model, make_folder, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    with pytest.raises(harness.UserError, match=r"copy has the same weights as .*model; measuring"):
        run("only=[piqa]", path=f"[{model},{tmp_path / 'copy'}]")
    other = make_folder(1)
    with pytest.raises(harness.UserError, match=r"nothing shows that model=.* repeats"):
        run("only=[piqa]", path=f"[{model},{other}]")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"select_ratios": [0.9, 0.9]}))
    with pytest.raises(harness.UserError, match=r"does not repeat .*, as select_ratios differ"):
        run("only=[piqa]", path=f"[{model},{other}]")


@pytest.mark.parametrize("content", ["{", "{}", '{"harness": {"results": {}}}', "[]"])
def test_a_damaged_result_is_named(run, tmp_path, content):
    run("only=[piqa]")
    (file,) = tmp_path.glob("out/tasks/piqa-*.json")
    file.write_text(content)
    with pytest.raises(harness.UserError, match=rf"{file.name} is damaged .* delete it"):
        run("only=[piqa]")


def test_a_figure_got_another_way_is_not_put_beside_the_papers(run):
    for override, average in (("tasks.piqa.shots=0", True), ("tasks.sciq.metric=acc_norm", False)):
        results, _ = run(override, "compare_with=LLaMA-162M", "tasks.mmlu.limit=1")
        lines = {line.task: line for line in lines_of(results, compared_row(results))}
        assert (AVERAGE_OF_TEN in lines) == average
        assert (lines["sciq"].paper is None) != average
        assert lines["piqa"].paper == 62.7
        assert lines["nq_open"].paper is None


def test_an_itt_without_thresholds_is_measured_by_top_k_only_where_that_is_asked_for(
    run, shards, small_recipe, tmp_path
):
    model = model_of_recipe(small_recipe("model.max_position_embeddings=1024"))
    write_model_folder(tmp_path / "bare", model, "", shards / "tokenizer")
    with pytest.raises(harness.UserError, match="the model has no thresholds, and under"):
        run("only=[piqa]", path=tmp_path / "bare")
    results, _ = run("only=[piqa]", "model.router_selection=top_k", path=tmp_path / "bare")
    assert results.models[0].router_selection == "top_k"
