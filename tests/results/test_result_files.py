"""Result files: those written by earlier versions are read, and what is wrong is named."""

import json

import pytest

from eval.__main__ import plot_results
from itt_composer.results.base import ResultError, read_result
from itt_composer.results.gradients import GradientResults
from itt_composer.results.perplexity import PerplexityResults
from itt_composer.results.tasks import TaskResults
from itt_composer.results.thinking import ThinkingResults

# As `python -m eval` wrote it before results had classes, with all its settings.
FIGURES = {"tokens": 744, "bytes": 1204, "loss": 6.5, "perplexity": 665.1, "bits_per_byte": 5.8}
PERPLEXITY = {
    "kind": "perplexity",
    "format": 2,
    "suite": {
        "model": {"path": ["runs/itt"], "dtype": "auto", "revision": None},
        "data": "shards",
        "split": "validation",
        "batch_size": 7,
        "select_ratios": [None, [1.0, 0.0, 0.3]],
        "plot": False,
    },
    "seq_len": 32,
    "text_sha256": "d4",
    "model": {
        "path": "runs/itt",
        "name": "itt",
        "model_type": "itt",
        "parameters": 44480,
        "trained_batches": None,
        "experiment_sha256": None,
        "dtype": "float32",
        "hidden_size": 32,
        "vocab_size": 512,
        "thinking": "itt",
        "thinking_steps": 4,
        "thinking_layers": [1],
        "select_ratios": [0.5, 0.5, 0.5],
        "router_norm": "sigmoid",
        "router_selection": "top_k",
        "early_exit": 0.0,
        "weights_sha256": "0a",
    },
    "settings": [
        {
            "select_ratios": [ratio, 0.0, 0.3],
            "router_selection": "top_k",
            "early_exit": 0.0,
            **FIGURES,
            "domains": {"code": FIGURES, "prose": {**FIGURES, "bytes": None}},
            "realised_shares": [[ratio], [], [0.28]],
            "paper_flops_per_token": 90000.0,
            "executed_flops_per_token": 88000.0 + ratio,
        }
        for ratio in (1.0, 0.5, 0.25)
    ],
}
LLAMA = {
    **PERPLEXITY,
    "model": {"path": "gpt2", "name": "gpt2", "model_type": "gpt2", "parameters": 1000},
    "settings": [
        {"select_ratios": [], "router_selection": None, "early_exit": 0.0, **FIGURES, "domains": {}}
    ],
}


def read(folder, content, *kinds):
    (folder / "result.json").write_text(json.dumps(content))
    return read_result(folder / "result.json", *kinds, advice="name another")


@pytest.mark.parametrize("content", [PERPLEXITY, LLAMA], ids=["itt", "gpt2"])
def test_a_file_of_before_is_read_and_written_as_it_was(tmp_path, content):
    assert read(tmp_path, content, TaskResults, PerplexityResults).content() == content


def test_a_file_of_another_kind_or_version_is_named(tmp_path):
    file = tmp_path / "result.json"
    mistakes = [
        ([], "is not a result of `itt analyse tokens`; name another"),
        ({"kind": "perplexity"}, "is not a result of `itt analyse tokens`; name another"),
        (
            {"kind": "thinking", "format": 2},
            "is of another version of this program; measure it again",
        ),
        ({"suite": {}, "settings": []}, "is of another version of this program; measure it again"),
    ]
    for content, sentence in mistakes:
        with pytest.raises(ResultError) as caught:
            read(tmp_path, content, ThinkingResults)
        assert str(caught.value) == f"{file} {sentence}"
    file.write_text("{")
    with pytest.raises(ResultError, match="is not JSON; name another"):
        read_result(file, GradientResults, advice="name another")


def test_the_first_key_that_is_wrong_is_named(tmp_path):
    setting = {**PERPLEXITY["settings"][0], "loss": "6.5"}
    del setting["perplexity"]
    with pytest.raises(ResultError) as caught:
        read(tmp_path, {**PERPLEXITY, "settings": [setting]}, PerplexityResults)
    assert caught.value.why == "is damaged: settings.0.loss should be a valid number"


def test_a_task_of_a_model_that_is_not_described_is_refused(tmp_path):
    run = {"model": "other", "fewshot_seed": None, "value": 0.5, "stderr": None, "requests": 1}
    run |= {"requests_cut": 0, "seconds": 1.0, "file": "piqa.json"}
    figures = {"shots": 0, "metric": "acc", "documents": 1, "questions_sha256": "0", "value": 0.5}
    figures |= {"stderr": None, "standard_error": None, "notes": [], "warnings": [], "runs": [run]}
    suite = {"tasks": {"piqa": {}}, "fewshot_seeds": [1]}
    content = {"kind": "tasks", "format": 2, "suite": suite, "tasks": {"piqa": figures}}
    with pytest.raises(ResultError, match=r"tasks.piqa.runs.0.model='other' is none of its models"):
        read(tmp_path, {**content, "models": [PERPLEXITY["model"]]}, TaskResults)


def test_a_sweep_is_plotted_as_on_the_page_and_a_single_setting_is_not(tmp_path, capsys):
    sweep = read(tmp_path, PERPLEXITY, PerplexityResults)
    plot_results(sweep, tmp_path / "elastic.png")
    assert (tmp_path / "elastic.png").read_bytes().startswith(b"\x89PNG")
    plot_results(read(tmp_path, LLAMA, PerplexityResults), tmp_path / "gpt2.png")
    assert "no plot: it needs a model of this project with a router" in capsys.readouterr().out
    assert not (tmp_path / "gpt2.png").exists()
