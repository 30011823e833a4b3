"""Frechet ratio against network evaluations, for every sampler: prints a table and writes images/few_steps.png.

python tools/few_steps.py digits mnist
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from diffit_lib.evaluation.evaluate import evaluate_each
from diffit_lib.sampling.pipeline import load
from diffit_lib.utils.plots import new_figure, write_figure

EVALUATIONS = (3, 5, 9, 15, 23, 35)
FIGURE = Path("images/few_steps.png")


def curves(name: str) -> dict[str, list[float]]:
    """The Frechet ratio of 500 images at each number of evaluations, by sampler."""
    churn = load(name).card.experiment.sampling.churn
    found = {}
    for label, settings in {
        "heun": {"sampler": "heun"},
        f"heun, churn {churn:g}": {"sampler": "heun", "churn": churn},
        "dpm++": {"sampler": "dpm++"},
        "unipc": {"sampler": "unipc"},
        "euler": {"sampler": "euler"},
        f"euler, churn {churn:g}": {"sampler": "euler", "churn": churn},
        "ddpm": {"sampler": "ddpm"},
    }.items():
        own = {"churn": 0.0} | settings if settings["sampler"] in ("heun", "euler") else settings
        steps = tuple((count + 1) // 2 if settings["sampler"] == "heun" else count for count in EVALUATIONS)
        found[label] = [numbers["frechet_ratio"] for numbers in evaluate_each(name, steps=steps, **own)]
    return found


def draw(results: dict[str, dict[str, list[float]]]) -> Figure:
    """One chart for each data set, both axes logarithmic."""
    figure = new_figure(5 * len(results), 4)
    for axes, (name, found) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        for label, ratios in found.items():
            axes.loglog(EVALUATIONS, ratios, marker="o", label=label)
        axes.set(title=name, xlabel="network evaluations", ylabel="Frechet ratio, 1 is ideal")
        axes.set_xticks(EVALUATIONS, [str(count) for count in EVALUATIONS])
        axes.minorticks_off()
        axes.legend()
    return figure


def main() -> None:
    """Print a table for each name, and write the figure of all."""
    results = {name: curves(name) for name in sys.argv[1:]}
    for name, found in results.items():
        print("|", " | ".join([name, *map(str, EVALUATIONS)]), "|\n" + "|---" * (len(EVALUATIONS) + 1) + "|")
        for label, ratios in found.items():
            print(f"| {label} |", " | ".join(f"{ratio:.2f}" for ratio in ratios), "|")
    write_figure(FIGURE, draw(results))


if __name__ == "__main__":
    main()
