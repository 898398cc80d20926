"""Draw the figures of the explanation page from the rows of comparisons: python benchmarks/figures.py"""

from __future__ import annotations

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


if __name__ == "__main__":
    curves("cifar10")
