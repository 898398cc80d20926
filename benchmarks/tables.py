"""Tables and plots of the results: rewrite the marked sections of the README and docs from the CSVs.

python benchmarks/tables.py          # write
python benchmarks/tables.py --check  # exit 1 if a table does not match its CSV
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import records
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gendd.compare.reading import read_plan
from gendd.compare.results import read_rows
from gendd.compare.summary import cells, headings, summarise
from gendd.files import trusted_code

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"
PAGES = [HERE.parent / "README.md", *sorted(DOCS.rglob("*.md"))]
LABELS = {
    "teacher": "teacher",
    "supervised": "student alone (cross-entropy)",
    "kl": "KL, no labels",
    "kd": "KD (T 4, weight 0.9)",
    "gendd_published": "GenDD as published",
    "gendd": "GenDD",
}
DEMO = {
    "teacher": "teacher (52,000 other labelled images)",
    "supervised": "student alone, 200 labels",
    "kl": "KL, 6,000 images, no labels",
    "gendd_no_labels": "GenDD, 6,000 images, no labels",
    "gendd": "GenDD, 6,000 images, 200 labels",
}
SCORES = {
    "max_softmax": "max softmax",
    "total": "total entropy",
    "aleatoric": "aleatoric",
    "mutual_information": "mutual information",
    "spread": "spread",
}


def read(name: str) -> list[dict[str, str]]:
    """Read the rows of a result; an empty list if it has not been measured."""
    return records.read(RESULTS / name)


def mean_std(values: list[float], digits: int = 2) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "Not measured yet."
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines)


def demo() -> str:
    """Top-1 of the demo's rows over seeds, and the paired difference to KL."""
    rows = read("demo.csv")
    by_method: dict[str, dict[str, float]] = {row["method"]: {} for row in rows}
    for row in rows:
        by_method[row["method"]][row["seed"]] = float(row["top1"])
    kl = by_method.get("kl", {})
    lines = []
    for method, found in by_method.items():
        gains = [value - kl[seed] for seed, value in found.items()]
        of_seeds = [*found.values()] if len({*found.values()}) > 1 else [next(iter(found.values()))]
        lines.append([DEMO[method], mean_std(of_seeds), signed(gains), str(len(found))])
    return table(["", "test, %", "above KL", "seeds"], lines)


def signed(gains: list[float]) -> str:
    """Format the mean of differences, and the smallest and the largest."""
    if not any(gains):
        return "–"
    return f"{statistics.mean(gains):+.2f} ({min(gains):+.2f} to {max(gains):+.2f})".replace("-", "−")


def demo_rates() -> str:
    """Top-1 of each method of the demo by learning rate, on the images its settings were chosen on."""
    rows = read("demo_rates.csv")
    rates = sorted({float(row["lr"]) for row in rows})
    lines = []
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = {float(row["lr"]): row["top1"] for row in rows if row["method"] == name}
        lines.append([DEMO[name], *(mine.get(rate, "–") for rate in rates)])
    return table(["top-1, %, at rate", *(f"{rate:g}" for rate in rates)], lines)


def recipes() -> str:
    """Cost of a step of every recipe."""
    rows = []
    for row in read("recipes.csv"):
        parts = (row[f"{part}_parameters"] for part in ("teacher", "student", "head"))
        cells = [f"`{row['recipe']}`", *(f"{int(part) / 1e6:.2f} M" if part else "–" for part in parts)]
        cells += [row["batch"], f"{int(row['rows']):,}" if row["rows"] else "–"]
        rows.append([*cells, f"{int(row['peak_mib']) / 1024:.1f}", row["batch_measured"]])
    head = ["recipe", "teacher", "student", "head", "batch", "rows per step", "peak GiB", "at batch"]
    return table(head, rows)


def by_student(dataset: str, keys: tuple[str, ...]) -> dict[tuple[str, ...], list[dict[str, str]]]:
    """Group the rows of an uncertainty table over seeds by keys, in the order of the methods' labels."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    found = [row for row in read("uncertainty.csv") if row["dataset"] == dataset]
    for row in sorted(found, key=lambda row: list(LABELS).index(row["method"])):
        groups[tuple(row[key] for key in keys)].append(row)
    return groups


def source(readout: str, n: str) -> str:
    """Describe what a prediction or score is computed from."""
    return f"{n} samples" if n else readout


def calibrated(dataset: str) -> str:
    """Top-1 and calibration of every prediction."""
    lines = []
    for (method, readout, n, score), rows in by_student(dataset, ("method", "readout", "n", "score")).items():
        if score:
            continue
        cells = [LABELS[method], source(readout, n), mean_std([float(row["top1"]) for row in rows])]
        cells.append(mean_std([100 * float(row["ece"]) for row in rows]))
        cells += [mean_std([float(row[name]) for row in rows], 3) for name in ("nll", "brier")]
        lines.append([*cells, str(len(rows))])
    head = ["method", "prediction", "top-1, %", "ECE, %", "NLL, nats", "Brier", "seeds"]
    return table(head, lines)


def detected(dataset: str) -> str:
    """AUROC and FPR95 of every score, one column per out-of-distribution set."""
    groups = by_student(dataset, ("method", "readout", "n", "score", "out"))
    sets = list(dict.fromkeys(out for *_, out in groups if out))
    lines = []
    for method, readout, n, score in dict.fromkeys(key[:4] for key in groups if key[3]):
        cells = [LABELS[method], f"{SCORES[score]} · {source(readout, n)}"]
        for out in sets:
            rows = groups[method, readout, n, score, out]
            both = (mean_std([100 * float(row[name]) for row in rows], 1) for name in ("auroc", "fpr95"))
            cells.append(" / ".join(both))
        lines.append(cells)
    return table(["method", "score", *sets], lines)


def latency() -> str:
    """Each readout's time as a multiple of the plain student's."""
    rows = []
    for row in read("latency.csv"):
        if row["readout"] == "student":
            continue
        size = f"{row['teacher_width']}-d, {row['tokens']} token{'s' if row['tokens'] != '1' else ''}"
        spread = f"{float(row['lowest']):.2f} – {float(row['highest']):.2f}"
        cells = [f"`{row['student']}`", size, row["head_width"], row["readout"], row["precision"]]
        cells += [row["batch"], f"**{float(row['ratio']):.3f}**", spread, f"{float(row['ratio_linear']):.3f}"]
        rows.append([*cells, f"{int(row['multiply_adds']) / 1e6:,.2f} M"])
    head = ["student", "teacher", "head", "readout", "precision", "batch", "× student", "range"]
    return table([*head, "× deployed student", "multiply-adds"], rows)


def exports() -> str:
    """Deviation, size and top-1 of every exported file; the worst over seeds."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in read("exports.csv"):
        method = row["student"].rpartition("-")[0]
        student = f"`{row['network']}`" + (f", {LABELS[method]}" if method in LABELS else "")
        groups[row["dataset"], student, row["readout"], row["format"]].append(row)
    lines = []
    for key, rows in groups.items():
        size = statistics.mean(int(row["bytes"]) for row in rows) / 1e6
        cells = [f"{max(float(row['deviation']) for row in rows):.1e}", f"{size:.2f}"]
        cells += [mean_std([float(row[name]) for row in rows]) for name in ("top1", "fp32_top1")]
        lines.append([*key, *cells])
    head = ["data", "student", "readout", "format", "largest deviation", "MB"]
    return table([*head, "top-1, %", "PyTorch's"], lines)


def sampling() -> str:
    """Speed-up of sampling over a direct implementation."""
    rows = [
        [
            row["case"],
            row["images"],
            f"**{float(row['ratio']):.2f}**",
            f"{float(row['lowest']):.2f} – {float(row['highest']):.2f}",
            row["deviation"],
        ]
        for row in read("sampling.csv")
    ]
    return table(["", "images", "times as fast", "range", "largest relative difference"], rows)


def samplers(data: str) -> str:
    """Top-1 by readout, one column per training setting."""
    rows = [row for row in read("samplers.csv") if row["data"] == data]
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    keys = ("readout", "sampler", "steps", "num_samples", "guidance", "passes")
    found: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[tuple(row[key] for key in keys)][row["setting"]].append(float(row["test_top1"]))
    lines = []
    for (readout, sampler, steps, count, guidance, passes), values in sorted(
        found.items(), key=lambda item: (int(item[0][-1]), item[0])
    ):
        named = "`linear`, probed" if readout == "probed" else f"`{readout}`"
        if readout == "sample":
            guided = f", guidance {float(guidance):g}" if float(guidance) != 1 else ""
            named = f"{sampler}, {count} × {steps} steps{guided}"
        scores = [mean_std(values[each]) if values[each] else "–" for each in settings]
        lines.append([named, passes, *scores])
    seeds = {each: len({row["seed"] for row in rows if row["setting"] == each}) for each in settings}
    heads = [f"{each} ({seeds[each]} seed{'s' if seeds[each] != 1 else ''})" for each in settings]
    return table(["readout", "passes", *heads], lines)


def probes() -> str:
    """Top-1 of the linear readout before and after refitting, by target."""
    fitted = {
        "labels": "the labels",
        "teacher": "the teacher's predictions",
        "mean": "predictions of readout mean",
    }
    groups: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    for row in read("probes.csv"):
        groups[row["method"], row["target"]].append(row)
    lines = []
    for (method, target), rows in groups.items():
        before, after = ([float(row[f"test_{when}"]) for row in rows] for when in ("before", "after"))
        gains = [new - old for old, new in zip(before, after, strict=True)]
        cells = [LABELS[method], fitted[target], mean_std(before), mean_std(after), f"{min(gains):+.2f}"]
        lines.append([*cells, str(len(rows))])
    return table(["student", "fitted to", "before", "after", "smallest gain", "seeds"], lines)


def probe_seconds() -> str:
    """Seconds of the whole command."""
    rows = [[f"{int(row['images']):,}", row["seconds"], row["threads"]] for row in read("probe_seconds.csv")]
    return table(["training images", "seconds", "threads"], rows)


def faults() -> str:
    """How many disturbed runs printed one line, and ended as the undisturbed one once resumed."""
    named = {
        "kill": "killed at a training step or inside a call that writes",
        "replace": "killed while `--overwrite` replaces a finished run",
        "full": "a disk of 4 KiB to 4 MiB",
        "damage": "the last checkpoint: a bit flipped in each of its regions, or cut short",
        "signal": "Ctrl-C, SIGTERM, SIGHUP, once and twice; a closed pipe",
    }
    data = {
        "digits": "in memory",
        "folder": "folder, loader processes",
        "shards": "tar shards, loader processes",
    }
    rows = read("faults.csv")
    groups = [(fault, kind) for fault in named for kind in data]
    lines = []
    for fault, kind in groups:
        mine = [row for row in rows if (row["fault"], row["data"]) == (fault, kind)]
        if mine:
            held = sum(int(row["held"]) for row in mine)
            codes = sorted({int(row["code"]) for row in mine})
            lines.append([named[fault], data[kind], ", ".join(map(str, codes)), str(len(mine)), str(held)])
    return table(["event", "images", "exit codes", "runs", "same result as undisturbed"], lines)


def teacher_cache() -> str:
    """Epochs with a teacher that computes its answers and with a cached one."""
    told = {"none": "–", "asked": "run on each batch", "cached": "read from its cache, {}"}
    lines = [
        [
            LABELS[row["method"]],
            told[row["teacher"]].format(row["storage"]) + (", compiled" if row["compiled"] == "true" else ""),
            row["seconds"],
            f"{float(row['ratio']):.2f} ({float(row['lowest']):.2f} to {float(row['highest']):.2f})",
            f"{float(row['cpu_ratio']):.2f}",
            row["megabytes"] or "–",
        ]
        for row in read("teacher_cache.csv")
    ]
    head = ["method", "teacher", "seconds per epoch", "× the student alone", "CPU time, ×", "MB"]
    return table(head, lines)


def throughput() -> str:
    """Training step of each method relative to the plain student's and to KD's."""
    rows = read("throughput.csv")
    place = ("student", "pixels", "batch", "precision", "machine", "graphs")
    graphs = {"true": ", CUDA graphs", "false": ", no graphs", "": ""}
    of_kd = {tuple(row[key] for key in place): row for row in rows if row["method"] == "KD"}
    lines = []
    for row in rows:
        kd = of_kd[tuple(row[key] for key in place)]
        memory = [
            f"{float(row[name]) / float(kd[name]):.2f}" if row[name] and kd[name] else "–"
            for name in ("peak_memory_mb", "tensors_mb")
        ]
        machine = row["machine"].rpartition(" · ")[2] if "NVIDIA" in row["machine"] else "one CPU core"
        lines.append(
            [
                " → ".join(row[role].partition("/")[2] for role in ("teacher", "student"))
                + f", {row['pixels']} px",
                f"{machine}, {row['precision']}, batch {row['batch']}{graphs[row['graphs']]}",
                row["method"],
                f"{float(row['ratio']) / float(kd['ratio']):.2f}",
                f"{float(row['ratio']):.2f}",
                f"{int(row['images_per_second']):,}",
                *memory,
            ]
        )
    head = [
        "networks",
        "on",
        "method",
        "× KD",
        "× student alone",
        "images/s",
        "memory, × KD",
        "tensors, × KD",
    ]
    return table(head, lines)


def step_cost() -> str:
    """The published step compared with ours."""
    rows = read("step_cost.csv")
    if not rows:
        return "Not measured yet."
    times: dict[str, list[float]] = {}
    for row in rows:
        times.setdefault(row["arm"], []).append(float(row["ms"]))
    released = times["released"]
    lines = []
    for arm, found in times.items():
        ratio = statistics.median(one / other for one, other in zip(released, found, strict=True))
        lines.append([arm, f"{statistics.median(found):,.0f}", f"{ratio:.2f}"])
    return table(["step", "ms", "released / this"], lines)


def families(library: str) -> str:
    """Results of one network per family of a library; of every network for torchvision."""
    lines = []
    for row in read("families.csv"):
        if row["library"] != library:
            continue
        parameters = f"{int(row['parameters']) / 1e6:.1f} M" if row["parameters"] else "–"
        cells = [row["family"], f"`{row['model']}`" if row["model"] != row["family"] else "", parameters]
        cells += [row[key] or "–" for key in ("size", "width", "feature", "difference", "step")]
        if "averaged" in row["classifier"]:
            cells[5] += "; mean of two layers"
        cells.append(f"{int(row['multiply_adds']) / 1e6:,.0f} M" if row["multiply_adds"] else "–")
        lines.append([*cells, row["note"]])
    lines.sort(key=lambda cells: cells[:2])
    head = [
        "family",
        "network",
        "parameters",
        "px",
        "D",
        "feature",
        "max. difference",
        "step",
        "multiply-adds",
        "",
    ]
    return table(head, lines)


# measured while a varying number of other runs shared the machine, so that times don't compare
SHARED: tuple[str, ...] = ("cifar10", "cifar10_mobilenet", "cifar10_long", "tiny_imagenet", "tiny_tokens")
SHARED += ("fashion", "fashion_long", "labels", "longtail", "other_images")


def summary(name: str) -> list[dict[str, Any]]:
    """Summarise a comparison from its file in compare/ and the CSV in results/compare/."""
    os.environ.setdefault("DATA", "DATA")  # the location of the data does not matter here
    with trusted_code():  # code of this repository
        plan = read_plan(HERE / "compare" / f"{name}.yaml")
    return summarise(plan, read_rows(RESULTS / "compare" / f"{name}.csv"))


def measured(name: str) -> list[dict[str, Any]]:
    """The methods of a comparison that have results, the best first."""
    return sorted((row for row in summary(name) if row["test"] is not None), key=lambda row: -row["test"])


def methods_table(rows: list[dict[str, Any]], shown: list[str]) -> str:
    names = headings(rows)
    shown = [each for each in shown if each in names]
    lines = [[row["label"], *cells(row, shown)] for row in rows]
    return table(["method", *(names[each] for each in shown)], lines)


def compared(name: str, shown: list[str] | None = None) -> str:
    """The methods of a comparison that have results, the best first, and all columns that are filled."""
    found = measured(name)
    if not found:
        return "Not measured yet."
    left_out = ["interval", "epochs", "peak_memory_mb", "mean"]
    if name in SHARED:
        left_out += ["train_seconds", "step_seconds", "seconds_to_reference"]
    return methods_table(found, shown or [each for each in headings(found) if each not in left_out])


def headline() -> str:
    """The main methods of the comparison on CIFAR-10, the best first."""
    wanted: tuple[str, ...] = ("gendd", "gendd_all", "gendd_unlabelled", "gendd_published")
    wanted += ("simkd", "srd", "dist", "kd", "supervised")
    found = [row for row in measured("cifar10") if row["method"] in wanted]
    return methods_table(
        found, ["rate", "test", "difference", "t_interval", "multiply_adds", "parameters", "seeds"]
    )


def new_axes(height: float) -> Axes:
    """Axes of a figure as wide as a page's text, of a height in inches."""
    figure = Figure(figsize=(7, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()


def save(axes: Axes, path: Path) -> None:
    """Save the axes' figure, without a frame at the top and the right."""
    axes.spines[["top", "right"]].set_visible(False)
    figure = axes.get_figure()
    assert isinstance(figure, Figure)
    figure.savefig(path, dpi=150)


def plot_compared(name: str) -> None:
    """Plot the test accuracy of every method of a comparison, and of the linear readout if it differs."""
    found = measured(name)
    if not found:
        return
    axes = new_axes(0.26 * len(found) + 0.9)
    apart = False
    for place, row in enumerate(found):
        colour = "#0072b2" if row["label"].startswith("GenDD") else "#666666"
        value, spread = row["test"], row["test_sd"] or 0.0
        axes.errorbar(value, place, xerr=spread, fmt="o", color=colour, markersize=5, capsize=3)
        axes.annotate(
            f"{value:.1f}",
            (value + spread, place),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
        linear = row["linear"]
        if linear is not None and abs(linear - value) > 1.5:
            apart = True
            axes.errorbar(
                linear,
                place,
                xerr=row["linear_sd"] or 0.0,
                fmt="D",
                color=colour,
                mfc="none",
                markersize=5,
                capsize=3,
            )
            axes.annotate(
                f"{linear:.1f}", (linear, place), (8, 0), textcoords="offset points", va="center", fontsize=8
            )
    axes.set_yticks(range(len(found)), [row["label"] for row in found], fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.12)
    axes.set_xlabel("test top-1, %" + (" (◇ linear readout)" if apart else ""))
    save(axes, RESULTS / "compare" / f"{name}.png")


def plot_differences(name: str) -> None:
    """Plot the difference of every method to the reference, with its 95 % t interval, in the file's order."""
    found = [row for row in summary(name) if row["difference"] is not None]
    if not found:
        return
    axes = new_axes(0.26 * len(found) + 0.9)
    axes.axvline(0, color="#999999", linewidth=0.8)
    for place, row in enumerate(found):
        value = row["difference"]
        if row["difference_t_low"] is not None:
            ends = [row["difference_t_low"], row["difference_t_high"]]
            axes.plot(ends, [place, place], color="#0072b2", linewidth=1.2)
        axes.plot(value, place, "o", color="#0072b2", markersize=5)
    axes.set_yticks(range(len(found)), [row["label"] for row in found], fontsize=8)
    axes.invert_yaxis()
    # linear near 0, so that small differences show beside large ones
    axes.set_xscale("symlog", linthresh=2)
    ticks = [-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50]
    axes.set_xticks(ticks, [f"{tick:+}" if tick else "0" for tick in ticks], fontsize=8)
    names = ("difference_t_low", "difference_t_high")
    edges = [row[name] for row in found for name in names if row[name] is not None]
    axes.set_xlim(min([*edges, -2]) * 1.1, max([*edges, 2]) * 1.1)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("difference of test top-1, points")
    save(axes, RESULTS / "compare" / f"{name}.png")


# entries of compare/labels.yaml, by method and by what labels there are
REGIMES = ("none", "1 %", "10 %", "all", "40 % wrong")
BY_REGIME = {
    "student alone": (None, "supervised_1", "supervised_10", "supervised", "supervised_noisy"),
    "KD": ("kl", "kd_1", "kd_10", "kd", "kd_noisy"),
    "GenDD": ("gendd_unlabelled", "gendd_1", "gendd_10", "gendd", "gendd_noisy"),
}


def labels() -> str:
    """Test accuracy by method and by what labels the training images have."""
    found = {row["method"]: row for row in measured("labels")}
    lines = [
        [method, *("–" if name not in found else cells(found[name], ["test"])[0] for name in names)]
        for method, names in BY_REGIME.items()
    ]
    return table(["labels", *REGIMES], lines)


def plot_labels() -> None:
    """Plot that table."""
    found = {row["method"]: row for row in measured("labels")}
    axes = new_axes(3.2)
    for (method, names), color in zip(BY_REGIME.items(), ("#666666", "#d55e00", "#0072b2"), strict=True):
        places = [place for place, name in enumerate(names) if name in found]
        rows = [found[names[place]] for place in places]
        axes.errorbar(
            places,
            [row["test"] for row in rows],
            yerr=[row["test_sd"] or 0 for row in rows],
            fmt="o",
            color=color,
            capsize=3,
            label=method if method != "KD" else "KD (no labels: KL)",
        )
    axes.set_xticks(range(len(REGIMES)), REGIMES)
    axes.set_xlabel("labels of the training images")
    axes.set_ylabel("test top-1, %")
    axes.legend(fontsize=8, frameon=False)
    save(axes, RESULTS / "compare" / "labels.png")


PLOTS: dict[str, Callable[[], None]] = {
    "ablations": partial(plot_differences, "ablations"),
    "labels": plot_labels,
}


def comparisons() -> list[str]:
    """Return the comparisons that have results."""
    return sorted(path.stem for path in (RESULTS / "compare").glob("*.csv"))


def plot_readouts() -> None:
    """Plot accuracy of the readouts against cost per image on CIFAR-10, for the seed with every sampler."""
    axes = new_axes(3.4)
    colours = {"default": "#0072b2", "published": "#d55e00"}
    marks = {"linear": "o", "mean": "D", "sample": "."}
    rows = [row for row in read("samplers.csv") if row["data"] == "cifar10" and row["seed"] == "0"]
    rows = [row for row in rows if row["readout"] != "probed"]
    for setting, colour in colours.items():
        for row in rows:
            if row["setting"] == setting:
                cost, top1 = int(row["multiply_adds"]) / 1e6, float(row["test_top1"])
                size = 4 if row["readout"] == "sample" else 7
                axes.plot(cost, top1, marks[row["readout"]], color=colour, markersize=size)
        axes.plot([], [], "o", color=colour, label=f"GenDD, {setting}")
    for readout, mark in marks.items():
        axes.plot([], [], mark, color="#555555", label=readout)
    axes.set_xscale("log")
    axes.set_xlabel("multiply-adds per image, millions")
    axes.set_ylabel("test top-1, % (one seed)")
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="center")
    save(axes, RESULTS / "readouts.png")


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "demo": demo,
    "demo_rates": demo_rates,
    "recipes": recipes,
    "calibration_digits": partial(calibrated, "digits"),
    "detection_digits": partial(detected, "digits"),
    "calibration_cifar10": partial(calibrated, "cifar10"),
    "detection_cifar10": partial(detected, "cifar10"),
    "latency": latency,
    "exports": exports,
    "sampling": sampling,
    "samplers_digits": partial(samplers, "digits"),
    "samplers_cifar10": partial(samplers, "cifar10"),
    "faults": faults,
    "teacher_cache": teacher_cache,
    "throughput": throughput,
    "step_cost": step_cost,
    "probes": probes,
    "probe_seconds": probe_seconds,
    "labels": labels,
    **{f"families_{name}": partial(families, name) for name in ("timm", "torchvision", "hf")},
    **{f"compare_{name}": partial(compared, name) for name in comparisons()},
    "compare_tiny_tokens": partial(
        compared,
        "tiny_tokens",
        ["rate", "mean", "linear", "difference", "t_interval", "multiply_adds", "seeds"],
    ),
    "compare_label_weight": partial(
        compared, "label_weight", ["test", "linear", "difference", "t_interval", "seeds"]
    ),
    "compare_digits_ideas": partial(
        compared, "digits_ideas", ["test", "linear", "difference", "t_interval", "seeds"]
    ),
    "compare_label_weight_short": partial(compared, "label_weight_short", ["test", "linear", "seeds"]),
    "compare_fashion_seconds": partial(
        compared,
        "fashion_seconds",
        ["rate", "test", "difference", "t_interval", "epochs", "train_seconds", "seeds"],
    ),
    "compare_cifar10_seconds": partial(
        compared,
        "cifar10_seconds",
        ["rate", "test", "linear", "difference", "t_interval", "epochs", "step_seconds", "seeds"],
    ),
    "compare_students": partial(
        compared, "students", ["rate", "test", "linear", "difference", "t_interval", "seeds"]
    ),
    "compare_views": partial(compared, "views", ["test", "linear", "seeds"]),
    "compare_ablations": partial(
        compared, "ablations", ["rate", "test", "linear", "difference", "t_interval", "seeds"]
    ),
}


def rewrite(text: str) -> str:
    def filled(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?(<!-- end -->)", filled, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = False
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = rewrite(text)
        stale |= new != text
        if not check:
            page.write_text(new, encoding="utf-8")
    if check:
        sys.exit(int(stale))
    for name in comparisons():
        PLOTS.get(name, partial(plot_compared, name))()
    if any(row["data"] == "cifar10" for row in read("samplers.csv")):
        plot_readouts()


if __name__ == "__main__":
    main()
