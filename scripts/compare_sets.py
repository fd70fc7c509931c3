#!/usr/bin/env python3
"""Trains, crosses over and evaluates under both sets of versions, and prints what differs.

    make setup && make setup SET=floor
    python3 scripts/compare_sets.py            # about 15 minutes; writes into runs/sets

Each set trains the same 50 batches of the quickstart's ITT, on one rank and, sharded, on two. What
a set had after 25 batches is then finished under the other, and every model is measured under
both.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SETS = {"today": REPOSITORY / ".venv/bin", "floor": REPOSITORY / ".venv-floor/bin"}
OUT = REPOSITORY / "runs/sets"
BATCHES, HALF = 50, 25
KEYS = [
    f"train.max_duration={BATCHES}ba",
    f"train.save_interval={HALF}ba",
    "train.keep_checkpoints=-1",
    f"train.eval_interval={BATCHES}ba",
    "train.global_batch_size=8",
    "train.microbatch_size=4",
    "train.eval_batch_size=8",
    "train.calibration_rows=32",
]
RANKS = {1: [], 2: ["train.sharding=fsdp"]}


def run(which: str, program: str, *arguments: object) -> None:
    command = [str(SETS[which] / program), *map(str, arguments)]
    print("$", " ".join(command).replace(f"{REPOSITORY}/", ""), flush=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}\nthe command above ended: {done.returncode}")


def prepare() -> Path:
    corpus, tokenizer, shards = OUT / "corpus", OUT / "tokenizer", OUT / "shards"
    run("today", "itt", "sample-corpus", "--out", corpus)
    run("today", "itt", "train-tokenizer", corpus, "--out", tokenizer, "--vocab-size", 2048)
    shares = OUT / "shares.yaml"
    shares.write_text("code: 0.7\ndocstrings: 0.1\npackages: 0.1\nreference: 0.1\n")
    budgets = ["--train-tokens", "100K", "--validation-tokens", "16K", "--shares", shares]
    run(
        "today",
        "itt",
        "convert",
        corpus,
        "--out",
        shards,
        "--tokenizer",
        tokenizer,
        *budgets,
        "--seq-len",
        128,
    )
    return shards


def train(which: str, ranks: int, folder: Path, shards: Path) -> None:
    recipe = "yamls/pretrain/quickstart.yaml"
    places = [f"run_folder={folder}", f"data.local={shards}"]
    places.append(f"loggers.json_lines.path={folder}/metrics.jsonl")
    launch = ["-n", ranks, "-m", "itt_composer.train", recipe, *KEYS, *RANKS[ranks], *places]
    run(which, "composer", *launch)


def half_way(finished: Path, folder: Path) -> None:
    """Copy a finished run as it was after half of its batches."""
    shutil.copytree(finished, folder, symlinks=True)
    shutil.rmtree(folder / "model")
    (folder / "summary.json").unlink()
    checkpoints = folder / "checkpoints"
    for path in checkpoints.glob(f"ep0-ba{BATCHES}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    latest = checkpoints / "latest-rank0.pt"
    latest.unlink()
    (half,) = checkpoints.iterdir()
    latest.symlink_to(half.name)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(finished), str(folder)))


def losses(folder: Path) -> dict[int, float]:
    """Training losses by batch."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    name = "loss/train/total"
    return {line["batch"]: line[name] for line in lines if name in line}


def perplexities(which: str, folder: Path, shards: Path) -> list[float]:
    out = folder / f"perplexity_{which}.json"
    keys = [f"model={folder}", f"data={shards}", "batch_size=8", f"output={out}"]
    run(
        which,
        "itt",
        "eval",
        "eval/suites/perplexity.yaml",
        *keys,
        "select_ratios=[null,[0.9,0,0.3]]",
    )
    return [setting["perplexity"] for setting in json.loads(out.read_bytes())["settings"]]


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    shards = prepare()
    runs = {}
    for which, ranks in itertools.product(SETS, RANKS):
        folder = OUT / f"{which}_{ranks}"
        if not (folder / "summary.json").is_file():
            train(which, ranks, folder, shards)
        runs[f"{which}, {ranks} rank{'s' * (ranks > 1)}"] = folder
    for begun, ended, ranks in (
        *((*SETS, n) for n in RANKS),
        *((*reversed(SETS), n) for n in RANKS),
    ):
        folder = OUT / f"{begun}_{ended}_{ranks}"
        if not folder.exists():
            half_way(OUT / f"{begun}_{ranks}", folder)
        if not (folder / "summary.json").is_file():
            train(ended, ranks, folder, shards)
        runs[f"{begun}, then {ended}, {ranks} rank{'s' * (ranks > 1)}"] = folder
    expected = losses(runs["floor, 1 rank"])
    print(
        "\n| Run | loss after 50 batches | largest difference | validation "
        "| perplexity, today | floor |"
    )
    print("| --- | ---: | ---: | ---: | --- | --- |")
    for name, folder in runs.items():
        got = losses(folder)
        assert got.keys() == expected.keys(), (name, sorted(got.keys() ^ expected.keys()))
        largest = max(abs(got[batch] - expected[batch]) for batch in expected)
        validation = json.loads((folder / "summary.json").read_bytes())["validation_loss"]
        measured = ["/".join(f"{p:.4f}" for p in perplexities(w, folder, shards)) for w in SETS]
        row = [name, f"{got[max(got)]:.6f}", f"{largest:.1e}", f"{validation:.6f}", *measured]
        print(f"| {' | '.join(row)} |", flush=True)
    for which, programs in SETS.items():
        listed = subprocess.run(
            [programs / "uv", "pip", "freeze", "--python", programs / "python"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        print(which, *re.findall(r"^(?:torch|transformers|numpy)==.*", listed, re.MULTILINE))


if __name__ == "__main__":
    main()
