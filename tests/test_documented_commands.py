"""Every command of README.md, CONTRIBUTING.md and docs/: read by what it names, and run small."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from documented_commands import REPOSITORY, Documented, documented, parse, python_blocks

from benchmarks import convert as benchmark
from data_prep.documents import Fields
from data_prep.domains import PAPER_SHARES
from data_prep.tokenizer_training import train_sentencepiece
from eval.suite import load_suite
from itt_composer.recipe.schema import load_recipe

COMMANDS = documented()
RECIPE = "yamls/pretrain/itt_x4_162m.yaml"
# What placeholders of the pages stand for here.
STANDS_FOR = {
    "RECIPE": RECIPE,
    "RECIPE.yaml": RECIPE,
    "yamls/pretrain/my_recipe.yaml": RECIPE,
    "trial.yaml": RECIPE,
    "RUN": "runs/itt_x4_162m",
    "PATH": "runs/itt_x4_162m",
    "runs/quickstart/itt_x4": "runs/itt_x4_162m",
    "runs/itt_x4_162m_elastic": "runs/itt_x4_162m",
    "runs/llama_162m": "runs/trial_dense",
    "/data/redpajama": "data/redpajama",
    "runs/quickstart/dense": "runs/trial_dense",
    "runs/quickstart/shards": "data/redpajama",
    "runs/more": "runs/full_capacity",
    "SHARDS": "data/redpajama",
    "TOK": "data/tokenizer",
    "ROOT": "data/corpus",
    "AQUA.jsonl": "aqua/dev.jsonl",
}
UNNAMED = {"model": "runs/itt_x4_162m", "data": "data/redpajama", "output": "results/other.json"}
SMALL_MODEL = (
    *("model.hidden_size=32", "model.intermediate_size=48", "model.num_hidden_layers=2"),
    *("model.num_attention_heads=2", "model.num_key_value_heads=2", "model.vocab_size=512"),
    "model.max_position_embeddings=64",
)
SMALL_TRAINING = (
    *SMALL_MODEL,
    *("data.local=data/redpajama", "data.seq_len=32", "data.num_workers=0"),
    *("train.max_duration=2ba", "train.global_batch_size=4", "train.microbatch_size=4"),
    *("train.eval_interval=2ba", "train.eval_batches=1", "train.eval_batch_size=4"),
    *("train.save_interval=2ba", "train.calibration_rows=4", "train.precision=fp32"),
    *("train.device=cpu", "train.sharding=none", "train.compile=false"),
    "loggers.tensorboard=null",
)
# What makes a command small, by what begins it; those that nothing begins here are read alone.
SMALLER = {
    "sample-corpus": ("--megabytes", "1"),
    "train-tokenizer": ("--vocab-size", "512"),
    "convert": ("--seq-len", "32", "--workers", "1"),
    "verify": (),
    "stats": (),
    "train": SMALL_TRAINING,
    "export": (),
    "from-llama": (),
    "calibrate": ("--rows", "4"),
    "generate": ("--max-new-tokens", "2"),
    "analyse tokens": ("--rows", "4"),
    "analyse gradients": ("--fine-tune", "1", "--epochs", "1", "--measure", "2"),
    "recipes": (),
    "eval eval/suites/eleven_tasks.yaml": ("only=[piqa]", "limit=2"),
    "eval eval/suites/perplexity.yaml": (),
    "eval eval/suites/elastic.yaml": ("select_ratios=[null,[0,0,0]]", "plot=false"),
    "tables": (),
    "report": (),
}
STAGES = list(SMALLER)
# Commands of ours that are read alone, and why.
READ_ALONE = {
    r"--engine spark": "takes Java: tests/data_prep/test_spark_engine.py",
    r"--shares shares\.yaml": "tests/data_prep/test_budgets.py",
    r"itt_composer serve ": "runs until Ctrl-C: tests/serving/test_documented_requests.py",
    r"eval fetch": "takes the hub: tests/evaluation/test_fetch.py",
    r"^python -m (data_prep|eval|itt_composer)"
    r"( (?!recipes)[a-z-]+( tokens| gradients)?)?$": "names a program",
    r"^python -m itt_composer\.train$": "names a program",
    r"…|COMMAND": "shows the form of commands",
    r"--print-config": "is what reading it does",
    r"itt_composer(\.| )train (?!.*(init_from|run_name=trial_dense|full_capacity))"
    r"(?!yamls/pretrain/itt_x4_162m\.yaml$)": "trains as others here do: by its recipe's keys",
    r"--allow-changes": "tests/test_training_failures.py",
}
# Commands of other programs, and what tests them or why nothing can.
ELSEWHERE = {
    r"^curl ": "asks a server: tests/serving/test_documented_requests.py",
    r"^(pip|apt-get|aws) ": "changes the machine, or takes a network",
    r"^lm_eval |cli_evaluate": "lm-eval's own: tests/evaluation/test_harness.py",
    r"^bash \.ci/run$": "runs these tests",
    r"^\. \.venv/bin/activate$": "changes the shell",
    r"^grep ": "makes a file of shares: tests/data_prep/test_budgets.py",
    r"^scripts/experiment\.sh ": "tests/test_experiment.py",
    r"^(export|job=|while|\[|exit)": "a batch system's script: tests/test_forward_sigterm.py",
}
BENCHMARKS = {
    "loader": ("--megabytes", "1", "--seq-len", "64", "--batch-size", "4", "--seconds", "0.1"),
    "watching": ("--sizes", "tiny", "--cycles", "2", "--rows", "2", "--seq-len", "32"),
    "train_step": (
        *("--size", "tiny", "--seq-lens", "32", "--rounds", "1"),
        *("--models", "dense;ITT×4 50/50/50"),
    ),
    "inference": (
        *("--sizes", "tiny", "--ratios", "0.5", "--prompt-tokens", "8", "--new-tokens", "2"),
        *("--repeats", "1", "--no-memory"),
    ),
    "evaluation": ("--models", "quickstart", "--tasks", "piqa", "--rounds", "1", "--scale", "0.02"),
    "convert": ("--seq-len", "32", "--reference-megabytes", "1", "--workers", "1"),
}
RUN_BY_OTHER_TESTS = {"equality": "tests/training/test_sharding.py, on two real ranks"}


def begins(command: Documented) -> str | None:
    """What makes it small, if it is run here."""
    if any(re.search(pattern, command.text) for pattern in READ_ALONE):
        return None
    if command.module is None or not command.command:
        return None
    text = " ".join(command.command)
    return next((stage for stage in STAGES if f"{text} ".startswith(f"{stage} ")), None)


def stood_for(command: Documented) -> list[str]:
    """Its words with real names in place of placeholders."""
    return [_stood_for(word, command) for word in command.words]


def _stood_for(word: str, command: Documented) -> str:
    key, equals, value = word.rpartition("=")
    if equals and value == "…":
        value = UNNAMED[key]
    if value == "MODEL":
        value = "runs/trial_dense/model" if "from-llama" in command.words else "out/run"
    if value == "OUT":
        is_upcycled = "from-llama" in command.words or key == "init_from"
        value = "out/upcycled" if is_upcycled else f"out/{len(command.command[1])}"
    for name, real in STANDS_FOR.items():
        if value == name or value.startswith(f"{name}/"):
            value = real + value.removeprefix(name)
    return key + equals + value


def ids(command: Documented) -> str:
    return f"{command.page}: {command.text[:70]}"


@pytest.mark.parametrize("command", COMMANDS, ids=ids)
def test_a_documented_command_is_read_by_what_it_names(command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    words = stood_for(command)
    if command.module:
        parse(Documented(command.page, tuple(words)))
        assert begins(command) or any(re.search(one, command.text) for one in READ_ALONE), (
            f"{command.text} is neither run in this file nor in READ_ALONE"
        )
        ours = Documented(command.page, tuple(words)).command
        if command.is_form or len(ours) < 2:
            return
        if ours[0] == "train":
            load_recipe(Path(ours[1]), [word for word in ours[2:] if not word.startswith("--")])
        elif ours[1:] and ours[1].endswith("tasks.yaml"):
            monkeypatch.setattr("eval.suite.check_model", lambda model: None)  # not trained here
            monkeypatch.setattr("eval.suite._check_ratios", lambda suite: None)
            load_suite(Path(ours[1]), ours[2:])
    elif command.words[0] == "make":
        words = command.words[: command.words.index("&&")] if "&&" in words else command.words
        done = subprocess.run(["make", "-n", *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for variable in (word.partition("=")[0] for word in words[2:]):
            assert f"$({variable})" in (REPOSITORY / "Makefile").read_text()
    elif command.benchmark:
        assert command.benchmark in {*BENCHMARKS, *RUN_BY_OTHER_TESTS}
    else:
        assert any(re.search(pattern, command.text) for pattern in ELSEWHERE), (
            f"{command.text} is neither tested in this file nor in ELSEWHERE"
        )


def test_launchers_know_the_options_that_the_pages_give_them(fork_server, tmp_path):
    script = tmp_path / "read.py"
    script.write_text(
        "import json, sys\n"
        "from composer.cli.launcher import _get_parser\n"
        "from torch.distributed.run import get_args_parser\n"
        "for program, *words in json.loads(sys.argv[1]):\n"
        "    parser = _get_parser() if program == 'composer' else get_args_parser()\n"
        "    parser.parse_args([*words, '-m', 'module'])\n"
    )
    launchers = {command.launcher for command in COMMANDS if command.launcher}
    words = [[re.sub(r"^\$\w+$", "0", word) for word in words] for words in launchers]
    result = fork_server.run(script, json.dumps(words))
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder like the repository's, with small text where the pages have theirs."""
    folder = tmp_path_factory.mktemp("workspace")
    for name in ("yamls", "eval", "benchmarks"):
        (folder / name).symlink_to(REPOSITORY / name)
    text = "".join(topics[name] for name in sorted(topics))[:90_000]
    lines = [json.dumps({"text": text[at : at + 400]}) for at in range(0, len(text), 400)]
    for domain in PAPER_SHARES:
        file = folder / "redpajama" / domain / "all.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text("\n".join(lines) + "\n")
    train_sentencepiece(folder / "redpajama", folder / "tokenizer", 512, 0.05, Fields())
    shutil.copy(folder / "tokenizer" / "tokenizer.model", folder)
    (folder / "story.txt").write_text("The tower of London is 900 years old.")
    problem = {"question": "1 + 1?", "options": ["A)2", "B)3"], "rationale": "2", "correct": "A"}
    for file, line in (
        ("aqua/dev.jsonl", problem),
        ("data/tasks/piqa/validation.jsonl", {"goal": "a", "sol1": "b", "sol2": "c", "label": 0}),
    ):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text((json.dumps(line) + "\n") * 4)
    return folder


def chain() -> Iterator[tuple[Documented, list[str]]]:
    """The commands that are run, in an order in which each finds what it needs."""
    seen = set()
    chosen = [(stage, command) for command in COMMANDS if (stage := begins(command))]
    for stage, command in sorted(chosen, key=lambda pair: _place(*pair)):
        words = [*stood_for(command)[2:], *SMALLER[stage]]
        if "--train-tokens" in words:
            words += ["--train-tokens", "20K", "--validation-tokens", "3K"]
        if tuple(words) not in seen:
            seen.add(tuple(words))
            yield command, words


def _place(stage: str, command: Documented) -> float:
    """Where it stands in the chain: what begins with a folder of weights after what makes one."""
    if "init_from" in command.text:
        return STAGES.index("from-llama") + 0.5
    return STAGES.index(stage)


def test_documented_commands_run_one_after_another_on_small_data(fork_server, workspace):
    for command, words in chain():
        arguments = [one for word in words for one in _expanded(word, workspace)]
        if command.command[0] == "calibrate":
            shutil.copytree(workspace / "runs/itt_x4_162m/model", workspace / "out/run")
        result = fork_server.run(arguments[0], *arguments[1:], cwd=workspace)
        assert result.returncode == 0, f"{command.page}: {words}\n{result.stdout}{result.stderr}"
    for page, code in python_blocks():
        if page == "docs/serving.md":  # asks a server: tests/serving/test_documented_requests.py
            continue
        script = workspace / f"{Path(page).stem}.py"
        script.write_text(f"import torch\nids = torch.tensor([[1, 7, 9]])\n{small_code(code)}")
        result = fork_server.run(script, cwd=workspace)
        assert result.returncode == 0, f"{page}\n{code}\n{result.stdout}{result.stderr}"
    made = ("results/elastic.json", "tables/tables.md", "report.html", "figures", "runs.md")
    assert all((workspace / name).exists() for name in made)


def small_code(code: str) -> str:
    """Code of a page on what the commands have made."""
    run = "runs/itt_x4_162m"
    others = {"runs/trial": run, "OUT": f"out/{len(run)}", "[417]": "[0]"}
    for there, here in {**STANDS_FOR, **others}.items():
        pattern = (
            re.escape(there) if there.startswith("[") else rf'(?<="){re.escape(there)}(?=["/])'
        )
        code = re.sub(pattern, here, code)
    return code


def _expanded(word: str, folder: Path) -> list[str]:
    """As a shell does it."""
    if "*" not in word:
        return [word]
    return sorted(str(path.relative_to(folder)) for path in folder.glob(word))


def test_every_benchmark_runs(fork_server, workspace):
    benchmarks = {file.stem for file in REPOSITORY.glob("benchmarks/*.py")}
    assert benchmarks == {*BENCHMARKS, *RUN_BY_OTHER_TESTS, "machine"}
    places = {"evaluation": ("data/tasks", "--tokenizer", "tokenizer.model")}
    for name, small in BENCHMARKS.items():
        if name == "convert":
            continue
        result = fork_server.run(f"benchmarks.{name}", *places.get(name, ()), *small, cwd=workspace)
        assert result.returncode == 0, f"{name}\n{result.stdout}{result.stderr}"
        assert "| --- |" in result.stdout


def test_the_benchmark_of_convert_runs(fork_server, workspace, monkeypatch, capsys):

    def in_a_fork(program, *command):
        """Runs what `measure` starts without the seconds of its imports."""
        started = time.monotonic()
        words = command[1:] if command[0] == "-m" else command
        result = fork_server.run(*map(str, words))
        assert result.returncode == 0, result.stderr
        seconds = time.monotonic() - started
        return benchmark.Measured(seconds, seconds, 1, result.stdout)

    monkeypatch.setattr(benchmark, "measure", in_a_fork)
    words = (workspace / "redpajama", "--tokenizer", workspace / "tokenizer.model")
    small = BENCHMARKS["convert"]
    monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, words), *small])
    benchmark.main()
    assert "| plain loop / ours, CPU per MB |" in capsys.readouterr().out
