"""Draws `annealing.svg`: the schedules of capacity annealing as training goes through them.

python docs/figures/annealing.py
"""

from pathlib import Path

import matplotlib as mpl
import typer

mpl.use("svg")
# The same file every time, its text as text.
mpl.rcParams.update({"svg.hashsalt": "annealing", "svg.fonttype": "none", "font.size": 9})

import matplotlib.pyplot as plt  # noqa: E402

from itt_composer.recipe.schedules import ratios_at, temperature_at  # noqa: E402

BATCHES = range(1001)
SPAN = 100  # of the default, duration: 0.1dur


def main() -> None:
    """Draw the schedules of capacity annealing into annealing.svg, beside this file."""
    figure, (near, whole, temperature) = plt.subplots(1, 3, figsize=(10, 2.9), layout="tight")
    first = BATCHES[:161]
    for shape, colour in (("linear", "C0"), ("cosine", "C1")):
        for levels, style in ((8, "-"), ("continuous", ":")):
            ratios = [ratios_at(b / SPAN, 0.1, [0.5], shape, levels)[0] for b in first]
            label = f"{shape}, {levels}" + (" levels" if levels == 8 else "")
            near.step(
                [b / 10 for b in first], ratios, style, where="post", color=colour, label=label
            )
        degrees = [temperature_at(b / SPAN, 2.0, 1.0, shape) for b in first]
        temperature.plot([b / 10 for b in first], degrees, color=colour, label=shape)
    near.set(title="start_ratio 0.1 → select_ratios 0.5", ylabel="share of tokens in a step")
    starts = {"step 1, from 0.1": 0.1, "step 2, from 0.3": 0.3, "step 3, from 0.5": 0.5}
    for label, start in starts.items():
        ratios = [ratios_at(b / 1000, start, [1.0], levels=8)[0] for b in BATCHES]
        whole.step([b / 10 for b in BATCHES], ratios, where="post", label=label)
    whole.set(title="target_ratio 1, duration 1dur", ylim=(0, 1.05))
    temperature.set(title="temperature 2 → 1", ylim=(0.9, 2.1))
    for axes in (near, whole, temperature):
        axes.set_xlabel("training, %")
        axes.legend(frameon=False, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    typer.run(main)
