"""LogiQA without a dataset script: the prompts of the harness, the documents of the hub."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks.logiqa import utils_logiqa
from small_task_data import make_task_data, own_datasets_cache

from eval.leaf_tasks import OWN_TASKS, leaf_tasks, task_manager
from eval.suite import TaskSettings
from eval.task_data import open_tasks
from eval.tasks.logiqa import FILES, load, parse

RECORD = """{label}
Some birds fly.Penguins do not. All penguins are birds.
Which follows?
A.Some birds do not fly.
B.All birds fly
C. No bird flies.Ever.
D.1.5 birds fly
"""


def test_only_the_data_differs_from_the_harness(tmp_path):
    def config(manager):
        (leaf,) = leaf_tasks(manager, "logiqa")
        own = ("custom_dataset", "dataset_kwargs", "doc_to_text", "doc_to_target")
        return {key: value for key, value in leaf.config.items() if key not in own}

    from lm_eval.tasks import logiqa

    harness = TaskManager(include_path=list(logiqa.__path__), include_defaults=False)
    assert leaf_tasks(task_manager(), "logiqa")[0].file == OWN_TASKS / "logiqa.yaml"
    assert config(task_manager()) == config(harness)


def test_prompts_and_targets_are_those_of_the_harness(tmp_path):
    make_task_data(tmp_path, documents=6)
    with open_tasks({"logiqa": TaskSettings(shots=0)}, str(tmp_path)) as tasks:
        task = tasks.manager.load("logiqa")["tasks"]["logiqa"]
        task.build_all_requests(rank=0, world_size=1)
    documents = list(task.eval_docs)
    assert len(documents) == 6
    assert [instance.args for instance in task.instances] == [
        (utils_logiqa.doc_to_text(document), f" {option}")
        for document in documents
        for option in document["options"]
    ]
    assert [task.doc_to_target(document) for document in documents] == [
        utils_logiqa.doc_to_target(document) for document in documents
    ]


def test_documents_are_made_as_by_the_script_of_the_hub():
    text = f"\n{RECORD.format(label='b ')}\n{RECORD.format(label='d')}"
    assert parse(text) == [
        {
            "label": label,
            "context": "Some birds fly. Penguins do not.  All penguins are birds.",
            "question": "Which follows?",
            "options": [
                "Some birds do not fly.",
                "All birds fly",
                "No bird flies. Ever.",
                "1. 5 birds fly",
            ],
        }
        for label in "bd"
    ]


def test_a_record_without_options_is_reported():
    with pytest.raises(ValueError, match="LogiQA's record 2 has 2 lines, so no options"):
        parse(f"{RECORD.format(label='a')}\na\nb\n")


def test_files_are_downloaded_over_http(tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    for count, file in enumerate(FILES.values(), 1):
        records = "\n".join(RECORD.format(label=label) for label in "abc"[:count])
        (served / file).write_text(records.replace("\n", "\r\n"), newline="")
    own_datasets_cache(monkeypatch, tmp_path / "cache")
    handler = functools.partial(QuietHandler, directory=served)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        splits = load(source=f"http://127.0.0.1:{server.server_port}", version=1.0)
        server.shutdown()
    assert {split: splits[split]["label"][:] for split in splits} == {
        "train": ["a"],
        "validation": ["a", "b"],
        "test": ["a", "b", "c"],
    }
    assert splits["test"][2] == parse(RECORD.format(label="c"))[0]


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, format, *arguments):
        pass
