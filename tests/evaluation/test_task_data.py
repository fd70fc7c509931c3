"""Data of tasks from a folder: the harness's own tasks, real files, and every mistake reported."""

import json
import shutil
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_task_data import make_task_data, mmlu_subjects, shared_task_data

from eval.fetch import tasks_of
from eval.leaf_tasks import leaf_tasks, task_manager
from eval.suite import ELEVEN_TASKS, TaskSettings
from eval.task_columns import BY_TASK, Mmlu, columns_of
from eval.task_data import DATA_KEYS, open_tasks
from itt_composer.basics.errors import UserError
from itt_composer.data.columns import check_file

TASKS = tasks_of(ELEVEN_TASKS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Small files for all eleven tasks."""
    return make_task_data(tmp_path_factory.mktemp("made"), documents=4)


@pytest.fixture
def data_dir(made, tmp_path):
    """Those but for most of MMLU, to be changed by a test."""
    folder = tmp_path / "data"
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns(*mmlu_subjects()[1:]))
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Any connection is an error."""

    def connect(*arguments):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def requests(task, shots, seed=1234):
    """Every prompt and continuation of a task, as lm-eval builds them."""
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(seed)
    task.build_all_requests(rank=0, world_size=1)
    return [instance.args for instance in task.instances]


def test_all_eleven_tasks_come_from_a_folder_without_network(made, no_network):
    with open_tasks(TASKS, str(made)) as tasks:
        assert len(tasks.leaves("mmlu")) == 57
        assert all(tasks.leaves(name) == [name] for name in TASKS if name != "mmlu")
        loaded = tasks.manager.load(list(TASKS))["tasks"]
        assert sorted(loaded) == sorted(leaf for name in TASKS for leaf in tasks.leaves(name))
        for name, task in loaded.items():
            (file,) = (
                file
                for split in ("test", "validation")
                if (file := made / name / f"{split}.jsonl").exists()
            )
            config = {"dataset_path": task.config.dataset_path}
            read = set(columns_of(name, config).model_fields)
            documents = task.dataset[file.stem].select_columns(sorted(read)).to_list()
            assert documents == [
                {column: row[column] for column in sorted(read)} for row in rows_of(file)
            ]
            assert len(task.eval_docs) == len(documents)


def test_only_where_the_data_comes_from_differs_from_the_harness(made):
    def config_of(manager, name):
        (leaf,) = leaf_tasks(manager, name)
        return {
            key: value
            for key, value in leaf.config.items()
            if value is not None and key not in ("tag", *(DATA_KEYS - {"fewshot_config"}))
        }

    manager = task_manager()
    names = [*TASKS, "mmlu_anatomy"]
    names.remove("mmlu")
    before = {name: config_of(manager, name) for name in names}
    entries = dict(manager.task_index)
    with open_tasks(TASKS, str(made)):
        assert {name: config_of(manager, name) for name in names} == before
        assert leaf_tasks(manager, "piqa")[0].file != entries["piqa"].yaml_path
    assert manager.task_index == entries


def test_tags_stand_for_all_their_tasks(data_dir):
    both = ["arc_challenge", "arc_easy"]
    with open_tasks({"ai2_arc": TaskSettings(shots=0)}, str(data_dir)) as tasks:
        assert tasks.leaves("ai2_arc") == both
        assert sorted(tasks.manager.load("ai2_arc")["tasks"]) == both
    with open_tasks({"arc_easy": TaskSettings(shots=0)}, str(data_dir)) as tasks:
        assert [leaf.name for leaf in leaf_tasks(tasks.manager, "ai2_arc")] == both


def test_shots_are_drawn_from_the_split_of_examples(data_dir):
    settings = {"arc_challenge": TaskSettings(shots=2)}
    with open_tasks(settings, str(data_dir)) as tasks:
        task = tasks.manager.load("arc_challenge")["tasks"]["arc_challenge"]
        (prompt, _), *_ = requests(task, 2)
    questions = [row["question"] for row in rows_of(data_dir / "arc_challenge/train.jsonl")]
    *examples, last = prompt.split("\n\n")
    assert len(examples) == 2
    assert all(any(question in example for question in questions) for example in examples)
    question = rows_of(data_dir / "arc_challenge/test.jsonl")[0]["question"]
    assert last == f"Question: {question}\nAnswer:"


def test_without_shots_the_examples_need_not_be_there(data_dir):
    (data_dir / "nq_open/train.jsonl").unlink()
    (data_dir / "mmlu_abstract_algebra/dev.jsonl").unlink()
    settings = dict.fromkeys(("nq_open", "mmlu_abstract_algebra"), TaskSettings(shots=0))
    with open_tasks(settings, str(data_dir)) as tasks:
        loaded = tasks.manager.load(list(settings))["tasks"]
        assert len(loaded["nq_open"].eval_docs) == 4
        assert requests(loaded["nq_open"], 0)


def test_parquet_and_json_lines_give_the_same_prompts(data_dir):
    settings = {"hellaswag": TaskSettings(shots=3)}
    with open_tasks(settings, str(data_dir)) as tasks:
        as_json = requests(tasks.manager.load("hellaswag")["tasks"]["hellaswag"], 3)
    source = data_dir / "hellaswag/validation.jsonl"  # the examples stay JSON lines
    rows = [{key: row[key] for key in sorted(row) if key != "ind"} for row in rows_of(source)]
    pq.write_table(pa.Table.from_pylist(rows), source.with_suffix(".parquet"))
    source.unlink()
    with open_tasks(settings, str(data_dir)) as tasks:
        assert requests(tasks.manager.load("hellaswag")["tasks"]["hellaswag"], 3) == as_json


def test_texts_that_look_like_dates_stay_texts(data_dir):
    file = data_dir / "nq_open/validation.jsonl"
    file.write_text('{"question": "when", "answer": ["1945-05-08"]}\n')
    with open_tasks({"nq_open": TaskSettings(shots=0)}, str(data_dir)) as tasks:
        (document,) = tasks.manager.load("nq_open")["tasks"]["nq_open"].eval_docs
    assert document["answer"] == ["1945-05-08"]


def refusal(settings, data_dir):
    """The one sentence that a mistake gets."""
    with pytest.raises(UserError) as caught, open_tasks(settings, data_dir and str(data_dir)):
        pass
    (sentence,) = str(caught.value).splitlines()
    return sentence


def test_an_unknown_task_is_reported_with_the_nearest_names():
    sentence = refusal({"picqa": TaskSettings(), "piqa": TaskSettings()}, None)
    assert sentence.startswith("picqa: lm-eval has no such task; did you mean piqa or ")


def test_a_folder_that_is_not_there_is_reported_with_how_to_fill_it(tmp_path):
    sentence = refusal({"piqa": TaskSettings()}, tmp_path / "nowhere")
    assert f"itt eval fetch {tmp_path / 'nowhere'}" in sentence


def test_a_missing_file_is_reported_with_what_it_is_for(data_dir):
    settings = {"piqa": TaskSettings(shots=3)}
    assert refusal(settings, data_dir) == (
        f"data_dir={data_dir} has no piqa/train.parquet (or .jsonl) with the examples before "
        f"questions of piqa; run `itt eval fetch {data_dir} piqa` where there is a network, "
        "or ask without by tasks.piqa.shots=0"
    )
    sentence = refusal({"mmlu": TaskSettings(shots=0)}, data_dir)
    assert "mmlu_high_school_biology/test.parquet" not in sentence
    assert ", mmlu_" in sentence
    assert "and 53 more with the questions of mmlu; run `itt eval fetch" in sentence


@pytest.mark.parametrize(("task", "shots", "rows"), [("boolq", 40, 41), ("arc_challenge", 41, 41)])
def test_too_few_examples_are_reported(data_dir, task, shots, rows):
    """Without a split of examples the harness draws one more, to leave out the question."""
    sentence = refusal({task: TaskSettings(shots=shots)}, data_dir)
    assert f"has 40 rows, but {shots} shots of {task} need {rows}; give it more" in sentence
    with open_tasks({task: TaskSettings(shots=shots - 1)}, str(data_dir)) as tasks:
        assert requests(tasks.manager.load(task)["tasks"][task], shots - 1)


def test_tasks_that_load_their_data_themselves_are_refused(data_dir):
    python_task = next(
        name for name, entry in task_manager().task_index.items() if entry.kind.name == "PY_TASK"
    )
    assert "is a Python class" in refusal({python_task: TaskSettings()}, data_dir)
    assert "gets its data from the group" in refusal({"flan_held_in": TaskSettings()}, data_dir)


MALFORMED = {
    "piqa/validation": ({"label": "1"}, "line 2: column label: input should be 0 or 1"),
    "winogrande/validation": ({"sentence": "no gap"}, "line 2: column sentence: should hold the"),
    "arc_easy/test": ({"answerKey": "Z"}, "line 2: answerKey='Z' is not one of the labels"),
    "arc_challenge/test": ({"choices": ["a"]}, "line 2: column choices: "),
    "hellaswag/validation": ({"endings": ["a"]}, "line 2: column endings: list should have at"),
    "logiqa/test": ({"label": 0}, "line 2: column label: input should be 'a', 'b', 'c' or 'd'"),
    "boolq/validation": ({"label": None}, "line 2: column label: input should be 0 or 1"),
    "lambada_openai/test": ({"text": "word"}, "line 2: column text: should hold several words"),
    "nq_open/validation": ({"answer": "one"}, "line 2: column answer: input should be a valid"),
    "sciq/test": ({"support": 3}, "line 2: column support: input should be a valid string"),
    "mmlu_abstract_algebra/test": ({"answer": "A"}, "line 2: column answer: input should be 0, 1"),
}


@pytest.mark.parametrize("path", MALFORMED)
def test_a_malformed_row_is_reported_with_the_columns_expected(data_dir, path):
    change, reason = MALFORMED[path]
    file = data_dir / f"{path}.jsonl"
    first = rows_of(file)[0]
    file.write_text(f"{json.dumps(first)}\n{json.dumps({**first, **change})}\n")
    sentence = refusal({file.parent.name: TaskSettings(shots=0)}, data_dir)
    assert sentence.startswith(f"{file}: {reason}")
    assert "; expected are the columns " in sentence


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"goal": "a", "sol1": "b", "label": 0}\n', "line 1: column sol2 is missing"),
        ('\n{"goal": \n', "line 2: is not JSON: "),
        ("[1]\n", "line 1: is not a JSON object"),
        ("\n", " has no rows"),
        (b"\xff\xfe", "is not a text file in UTF-8"),
    ],
)
def test_a_broken_file_is_reported(data_dir, content, reason):
    file = data_dir / "piqa/validation.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    sentence = refusal({"piqa": TaskSettings(shots=0)}, data_dir)
    assert sentence.startswith(str(file))
    assert reason in sentence


def test_broken_parquet_is_reported(data_dir):
    file = data_dir / "sciq/test.parquet"
    good = pa.Table.from_pylist(rows_of(file.with_suffix(".jsonl")))
    settings = {"sciq": TaskSettings(shots=0)}
    pq.write_table(good.drop_columns("support"), file)
    assert refusal(settings, data_dir).startswith(
        f"{file}: column support is missing; expected are"
    )
    pq.write_table(good.set_column(0, "question", pa.array([None] * len(good), pa.string())), file)
    assert refusal(settings, data_dir).startswith(
        f"{file}: row 1: column question: input should be a"
    )
    file.write_bytes(file.read_bytes()[:-9])
    assert refusal(settings, data_dir).startswith(f"{file}: is not a whole Parquet file: ")


def test_files_of_other_tasks_must_be_readable(data_dir):
    file = data_dir / "commonsense_qa/validation.jsonl"
    file.parent.mkdir()
    file.write_text('{"any": 1}\n{"any": \n')
    settings = {"commonsense_qa": TaskSettings(shots=0)}
    assert refusal(settings, data_dir).startswith(f"{file}: line 2: is not JSON: ")


def test_the_fingerprint_is_that_of_the_content(data_dir, tmp_path):
    def fingerprints(folder):
        with open_tasks(settings, folder and str(folder)) as tasks:
            return {name: tasks.fingerprint(name) for name in settings}

    settings = {name: TASKS[name] for name in ("piqa", "arc_challenge", "logiqa")}
    first = fingerprints(data_dir)
    assert len(set(first.values())) == 3
    moved = data_dir.rename(tmp_path / "moved")
    assert fingerprints(moved) == first
    from_hub = fingerprints(None)
    assert all(from_hub[name] != first[name] for name in settings)
    file = moved / "arc_challenge/train.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    changed = fingerprints(moved)
    assert [name for name in settings if changed[name] != first[name]] == ["arc_challenge"]


def test_the_documented_columns_are_those_checked():
    text = (Path(__file__).parents[2] / "docs/evaluation_data.md").read_text()
    for task, columns in {**BY_TASK, "mmlu_abstract_algebra": Mmlu}.items():
        row = next(line for line in text.splitlines() if f"`{task}`" in line and "|" in line)
        assert f"| {columns.expected()} |" in row


def test_real_files_are_what_the_tasks_expect():
    shared = shared_task_data()
    if shared is None:
        pytest.skip("no lm_eval in the shared data: set ITT_SHARED_DATA to its folder")
    counts = {
        file.parent.name: check_file(file, columns_of(file.parent.name, {}))
        for file in shared.glob("*/*.jsonl")
    }
    assert counts == {
        "piqa": 1838,
        "winogrande": 1267,
        "arc_easy": 2376,
        "arc_challenge": 1172,
        "lambada_openai": 5153,
        "nq_open": 3610,
    }
    settings = {name: TaskSettings(shots=0) for name in counts}
    with open_tasks(settings, str(shared)) as tasks:
        loaded = tasks.manager.load(list(settings))["tasks"]
        assert {name: len(task.eval_docs) for name, task in loaded.items()} == counts
