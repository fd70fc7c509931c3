"""Run folders for reports, made by hand: what training and the analyses leave behind."""

import json
import math
import random
from pathlib import Path
from typing import Any

from small_recipe import RECIPE

from itt_composer.recipe.schema import load_recipe, recipe_as_yaml

LAYERS, BATCH_TOKENS = 4, 128
CLASSES = ("word begin", "word inside", "digit", "punctuation", "whitespace", "rare", "frequent")
TEXT = [
    "The",
    " tower",
    " of",
    " London",
    "\n",
    "<b>",
    "</script>",
    " is",
    " 9",
    "00",
    " years",
    ".",
]


def write_run(
    folder: Path,
    *overrides: str,
    batches: int = 40,
    finished: bool = True,
    loss: float = 4.0,
    analysed: bool = False,
) -> Path:
    """A run of the small recipe: recipe, metrics and, if finished, a summary.

    Args:
        folder: of the run.
        overrides: of the recipe.
        batches: trained so far.
        loss: at its end.
        analysed: whether to write what the analyses and the elastic sweep do, too.
    """
    folder.mkdir(parents=True)
    source = folder / "source.yaml"
    source.write_text(RECIPE)
    recipe = load_recipe(
        source,
        [
            f"run_name={folder.name}",
            f"run_folder={folder}",
            f"model.num_hidden_layers={LAYERS}",
            "train.max_duration=40ba",
            *overrides,
        ],
    )
    source.unlink()
    (folder / "recipe.yaml").write_text(recipe_as_yaml(recipe))
    lines = list(metrics(recipe, batches, loss))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        seconds = batches * 0.25
        summary = {
            "run_name": recipe.run_name,
            "thinking": recipe.thinking.thinking,
            "thinking_steps": recipe.thinking.thinking_steps,
            "parameters": 100_000,
            "batches": batches,
            "tokens": batches * BATCH_TOKENS,
            "train_seconds": seconds,
            "validation_loss": loss,
            "validation_loss_by_threshold": loss + 0.01,
        }
        (folder / "summary.json").write_text(json.dumps(summary))
    if analysed:
        thinking = recipe.resolved_thinking()
        write_analyses(folder, thinking.thinking_layers or [], thinking.thinking_steps or 1)
        result = perplexities(folder.name, loss)
        result["model"] |= {**recipe.model.model_dump(), **vars(thinking)}
        (folder / "perplexity.json").write_text(json.dumps(result))
    return folder


def metrics(recipe, batches: int, loss: float):
    """Lines as a run writes them."""
    thinking = recipe.resolved_thinking()
    noise = random.Random(f"{recipe.run_name}{recipe.seed}")
    for batch in range(batches + 1):
        progress = batch / batches
        line: dict[str, Any] = {"batch": batch, "tokens": batch * BATCH_TOKENS}
        line["time/train"] = batch * 0.25 / 3600
        line["throughput/tokens_per_sec"] = 512.0
        line["unheard/of"] = "text"
        for step in range(1, thinking.thinking_steps or 1):
            ratio = min(1.0, 0.1 + 4 * progress) * thinking.select_ratios[step - 1]
            line[f"capacity_annealing/select_ratio/step_{step}"] = ratio
        now = loss + 4 * math.exp(-5 * progress)
        if batch < batches:
            line["loss/train/total"] = now + noise.gauss(0, 0.1)
        if batch and batch % 10 == 0:
            line["metrics/eval/LanguageCrossEntropy"] = loss if batch == batches else now
            line["metrics/eval_threshold/LanguageCrossEntropy"] = now + 0.01
        if batch % 5 == 0:
            for layer in thinking.thinking_layers or []:
                for step in range(thinking.thinking_steps or 1):
                    key = f"thinking/layer_{layer}/step_{step}"
                    line[f"{key}/step_encoding_mean"] = 1 + 0.05 * progress * (layer - step)
                    if step:
                        line[f"{key}/weight_mean"] = 0.5 + 0.1 * step * progress
                        line[f"{key}/share_selected"] = 0.5
        yield line


def write_analyses(folder: Path, layers: list[int], steps: int) -> None:
    """`analysis/thinking.json` and `analysis/gradients.json`."""
    (folder / "analysis").mkdir()
    content = {"thinking": thinking(layers, steps), "gradients": gradients()}
    for name, result in content.items():
        (folder / "analysis" / f"{name}.json").write_text(json.dumps(result))


def thinking(layers: list[int], steps: int, text: list[str] | None = None) -> dict[str, Any]:
    """As `itt_composer.analysis` writes it."""
    tokens = TEXT * 6 if text is None else text
    pairs = [(layer, step) for layer in layers for step in range(1, steps)]
    noise = random.Random(17)
    edges = [number / 20 for number in range(21)]
    counts = [round(1000 * math.exp(-((number - 12) ** 2) / 16)) for number in range(20)]
    return {
        "kind": "thinking",
        "format": 1,
        "model_sha256": "0",
        "data": {"folder": "shards", "split": "validation", "rows": 8, "tokens": 1024},
        "router_selection": "top_k",
        "select_ratios": [0.5] * (steps - 1),
        "steps": [
            {
                "layer": layer,
                "step": step,
                "share": 0.5,
                "weight_mean": 0.6,
                "weight_std": 0.1,
                "selected_weight_mean": 0.7,
                "histogram": {
                    "edges": edges,
                    "counts": counts,
                    "selected_counts": [
                        count if edge > 0.6 else count // 5
                        for edge, count in zip(edges, counts, strict=False)
                    ],
                },
                "overlap": None if step == 1 else 0.3 + 0.05 * layer,
                "complement": None if step == 1 else 0.7 - 0.05 * layer,
                "union": None if step == 1 else 0.8,
                "classes": {
                    name: {"tokens": 100, "share": 0.2 + 0.1 * place * (1 + step / 10)}
                    for place, name in enumerate(CLASSES)
                },
            }
            for layer, step in pairs
        ],
        "step_encodings": [
            {
                "layer": layer,
                "step": step,
                "mean": 1 - 0.04 * step,
                "std": 0.05,
                "min": 0.8,
                "max": 1.2,
            }
            for layer in layers
            for step in range(steps)
        ],
        "texts": [
            {
                "name": name,
                "tokens": tokens,
                "steps": [
                    {
                        "layer": layer,
                        "step": step,
                        # The first token takes every step, with next to no weight.
                        "weights": [0.0002, *(noise.random() for _ in tokens[1:])],
                        "selected": [1, *(noise.randint(0, 1) for _ in tokens[1:])],
                    }
                    for layer, step in pairs
                ],
            }
            for name in ("a tower", "<i>another</i>")
        ],
    }


def gradients() -> dict[str, Any]:
    """As `itt_composer.analysis` writes it."""
    layers = list(range(LAYERS))

    def of(top: float, bump: float) -> dict[str, Any]:
        values = [top / (1 + layer) + bump * (layer % 2) for layer in layers]
        names = ("q", "k", "v", "o")
        return {
            "problems": 12,
            "mean": dict.fromkeys(names, values),
            "std": {name: [0.2 * value for value in values] for name in names},
        }

    return {
        "kind": "gradients",
        "format": 1,
        "model_sha256": "0",
        "problems": {
            "file": "aqua.jsonl",
            "fine_tuned_on": 100,
            "measured": 24,
            "accuracy": 0.5,
            "chance": 0.2,
        },
        "projections": ["q", "k", "v", "o"],
        "layers": layers,
        "thinking_layers": [1, 3],
        "easy": of(4.0, 0.0),
        "hard": of(6.0, 2.0),
    }


def perplexities(name: str, loss: float) -> dict[str, Any]:
    """As `python -m eval` writes an elastic sweep."""
    settings = [
        {
            "select_ratios": [ratio] * 3,
            "router_selection": rule,
            "early_exit": 0.0,
            "tokens": 1000,
            "bytes": 3000,
            "loss": loss,
            "perplexity": math.exp(loss) * (1 + 0.2 * (0.7 - ratio) ** 2 + extra),
            "bits_per_byte": loss / math.log(2) / 3,
            "domains": {},
            "realised_shares": [[ratio] * 3],
            "executed_flops_per_token": 3e6 * (1 + ratio),
            "paper_flops_per_token": 4e6 * (1 + ratio),
        }
        for rule, extra in (("top_k", 0.0), ("threshold", 0.002))
        for ratio in (0.0, 0.3, 0.5, 0.7, 0.9)
    ]
    suite = {"data": "shards", "split": "validation"}
    model = {"path": f"runs/{name}", "name": name, "model_type": "itt", "parameters": 1000}
    model["weights_sha256"] = f"{name} {loss}"
    kind = {"kind": "perplexity", "format": 2, "text_sha256": "of the rows"}
    return {**kind, "suite": suite, "model": model, "settings": settings}
