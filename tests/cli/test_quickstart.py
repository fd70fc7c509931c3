"""The quickstart with its real commands, on models and steps cut to seconds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from itt_composer.cli import quickstart

REPOSITORY = Path(__file__).parents[2]
RECIPE = """
parts:
  model: {yamls}/models/tiny.yaml
  thinking: {yamls}/thinking/{thinking}.yaml
  data: {yamls}/data/quickstart.yaml
  train: {yamls}/train/cpu.yaml
run_name: {thinking}
run_folder: {folder}/{thinking}
model: {{hidden_size: 32, intermediate_size: 32, num_hidden_layers: 2, vocab_size: 1024}}
data: {{local: {folder}/shards}}
train: {{max_duration: 3ba}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Point the quickstart at a folder of its own."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(quickstart, "FOLDER", tmp_path)
    monkeypatch.setattr(quickstart, "ELASTIC_SETTINGS", ("[0,0,0]",))
    for name in ("corpus", "tokenizer", "shards"):
        monkeypatch.setattr(quickstart, name.upper(), tmp_path / name)
    for name, thinking in (("DENSE_RECIPE", "dense"), ("ITT_RECIPE", "itt_x4")):
        path = tmp_path / f"{thinking}.yaml"
        path.write_text(
            RECIPE.format(yamls=REPOSITORY / "yamls", thinking=thinking, folder=tmp_path)
        )
        monkeypatch.setattr(quickstart, name, path)
    return tmp_path


def test_quickstart_ends_with_the_table_and_does_nothing_the_second_time(folder, capfd):
    quickstart.main()
    printed = capfd.readouterr().out
    assert "What thinking bought" in printed
    table = printed[printed.index("What thinking bought") :]
    table, next_steps = table.split("What comes next:\n")
    assert [line.split()[0] for line in table.splitlines() if line.strip()][6:] == [
        *("LLaMA", "ITT×4"),
        *["elastic"] * len(quickstart.ELASTIC_SETTINGS),
        "Done",
    ]
    assert_one_number_per_model(printed, table)
    generate, tokens, recipes = re.findall(r"^\.venv/.*", next_steps, re.MULTILINE)
    result = subprocess.run(generate, shell=True, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "class Path" in result.stdout
    assert tokens.split()[:4] == [".venv/bin/itt", "analyse", "tokens", str(folder / "itt_x4")]
    assert recipes == ".venv/bin/itt recipes"
    assert "…" not in table  # nothing was cut off
    assert str(folder / "report.html") in table
    page = (folder / "report.html").read_text()
    assert "ITT×4" in page
    assert 'id="elastic"' in page
    assert 'id="routing_map"' in page

    quickstart.main()
    again = capfd.readouterr().out
    assert "$ composer" not in again
    assert "eval/suites" not in again
    assert again.count("nothing to do") == 9
    table_again = again[again.index("What thinking bought") : again.index("Done in")]
    assert table_again == table[: table.index("Done in")]


def assert_one_number_per_model(printed, table):
    """Training, evaluation and the table measure the same rows."""
    by_training = re.findall(r"^batch 3 · validation loss .* perplexity ([\d.]+)", printed, re.M)
    (dense,) = re.findall(r"^ *LLaMA .*?([\d.]+)  +([\d.]+) *$", table, re.M)
    (itt,) = re.findall(r"^ *ITT×4 .*?([\d.]+)  +([\d.]+) *$", table, re.M)
    assert len(set(dense)) == 1
    shown = [float(figure) for figure in (dense[0], *itt)]
    assert [float(figure) for figure in by_training] == pytest.approx(shown, rel=2e-4)


@pytest.mark.parametrize("code", [0, 130])
def test_ctrl_c_lets_the_command_under_way_save_and_starts_no_other(code):
    program = f"import os, signal; os.kill(os.getppid(), signal.SIGINT); raise SystemExit({code})"
    with pytest.raises(KeyboardInterrupt):
        quickstart.run_printed([sys.executable, "-c", program])


def test_a_word_too_many_is_a_mistake_and_help_starts_nothing(monkeypatch):
    monkeypatch.setattr(quickstart, "prepare_data", lambda: pytest.fail("started"))
    runner = CliRunner()
    assert runner.invoke(quickstart.app, ["--help"]).exit_code == 0
    assert runner.invoke(quickstart.app, ["more"]).exit_code == 2
