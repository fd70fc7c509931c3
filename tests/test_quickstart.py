"""The quickstart with its real commands, on models and steps cut to seconds."""

from pathlib import Path

import pytest

from itt_composer import quickstart

REPOSITORY = Path(__file__).parents[1]
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
train: {{max_duration: 3ba, eval_batches: 1}}
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
    assert [line.split()[0] for line in table.splitlines() if line.strip()][6:] == [
        *("LLaMA", "ITT×4"),
        *["elastic"] * len(quickstart.ELASTIC_SETTINGS),
        "Done",
    ]
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
    assert (
        again[again.index("What thinking bought") :].splitlines()[:-1] == (table.splitlines()[:-1])
    )
