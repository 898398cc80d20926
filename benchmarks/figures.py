"""Draw the figures of training curves and gradients from committed results: python benchmarks/figures.py"""

from __future__ import annotations

import records
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tables import RESULTS

from gendd.compare.results import read_rows

SHOWN = {
    "gendd": ("GenDD", "#0072b2"),
    "gendd_pooled": ("GenDD, pooled feature only", "#56b4e9"),
    "simkd": ("SimKD", "#009e73"),
    "srd": ("SRD", "#cc79a7"),
    "kd": ("KD", "#d55e00"),
    "supervised": ("student alone", "#666666"),
}


def curves(name: str) -> None:
    """Plot validation accuracy by epoch for each method's chosen learning rate and first seed."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rows = [
        row for row in read_rows(RESULTS / "compare" / f"{name}.csv") if row["chosen"] and not row["error"]
    ]
    for method, (label, colour) in SHOWN.items():
        values = next(row["curve"] for row in rows if row["method"] == method)
        epochs = range(1, len(values) + 1)
        axes.plot(epochs, values, color=colour, marker="o", markersize=3, label=label)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation top-1, %")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "compare" / f"{name}_curves.png", dpi=150)


PARTS = {
    "stages": ("stage maps", "#009e73"),
    "map": ("last map", "#56b4e9"),
    "diffusion": ("diffusion", "#0072b2"),
    "labels": ("labels (weight 1)", "#d55e00"),
}


def gradients(file: str, method: str) -> None:
    """Plot norms and directions of the losses' gradients, and what the condition adds at each t."""

    def chosen(name: str) -> list[dict[str, str]]:
        rows = records.read(RESULTS / f"{name}.csv")
        return [row for row in rows if (row["file"], row["method"]) == (file, method)]

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    norms, angles, conditions = figure.subplots(1, 3)
    losses = chosen("gradients")
    for part, (label, colour) in PARTS.items():
        rows = [row for row in losses if row["part"] == part]
        epochs = [int(row["epoch"]) for row in rows]
        for axes, key in ((norms, "norm"), (angles, "cosine")):
            values = [float(row[key]) for row in rows]
            axes.plot(epochs, values, color=colour, marker="o", markersize=3, label=label)
    norms.set(yscale="log", xlabel="epoch", ylabel="norm of the gradient")
    norms.legend(fontsize=7, frameon=False)
    angles.set(xlabel="epoch", ylabel="cosine to the other losses' gradient")
    angles.axhline(0, color="#bbbbbb", linewidth=0.8)
    rows = chosen("conditions")
    last = max(int(row["epoch"]) for row in rows)
    rows = [row for row in rows if int(row["epoch"]) == last]
    for key, label, style in (("own", "own condition", "-"), ("other", "another image's", "--")):
        values = [float(row[key]) for row in rows]
        times = [float(row["t"]) for row in rows]
        conditions.plot(times, values, style, color="#0072b2", marker="o", markersize=3, label=label)
    conditions.set(xlabel="t / T", ylabel="cosine to the teacher's feature")
    conditions.legend(fontsize=7, frameon=False)
    for axes in (norms, angles, conditions):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "gradients.png", dpi=150)


if __name__ == "__main__":
    curves("cifar10")
    gradients("label_weight_short", "weight_0")
