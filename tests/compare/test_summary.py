"""Summaries of rows against values computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_comparison import small

from gendd.compare.page import page
from gendd.compare.plan import Plan
from gendd.compare.reading import read_plan
from gendd.compare.results import COLUMNS, best_rate, read_rows, write_rows
from gendd.compare.summary import bootstrap_interval, markdown, summarise, t_interval, write_summary
from gendd.errors import UserError


def row(method: str, seed: int, test: float | None, **values: Any) -> dict[str, Any]:
    empty = {name: [] if kind is list else None for name, kind in COLUMNS.items()}
    figures = {
        "data": "",
        "pair": "",
        "method": method,
        "label": method,
        "seed": seed,
        "rate": 0.1,
        "test": test,
    }
    return empty | figures | {"chosen": test is not None, "config": f"{method}{seed}"} | values


def plan(seeds: list[int], methods: tuple[str, ...] = ("kd", "gendd")) -> Plan:
    given = {name: {"method": "kd"} if name == "kd" else {} for name in methods}
    return read_plan(small(seeds=seeds, methods=given))


def test_means_spreads_and_paired_differences_are_those_by_hand() -> None:
    rows = [
        row("kd", 0, 70.0, test_linear=70.0, curve=[50.0, 60.0], monitor="val/linear", train_seconds=10.0),
        row("kd", 1, 72.0, test_linear=72.0, curve=[50.0, 62.0], monitor="val/linear", train_seconds=14.0),
        row("kd", 2, 71.0, test_linear=71.0, curve=[50.0, 61.0], monitor="val/linear", train_seconds=12.0),
        # seed 1 is missing, so the pairs are seeds 0 and 2
        row(
            "gendd",
            0,
            73.0,
            test_linear=72.0,
            test_mean=73.0,
            curve=[55.0, 60.0, 70.0, 65.0],
            monitor="val/mean",
            train_seconds=20.0,
            peak_memory_mb=100.0,
            multiply_adds=1000,
        ),
        row(
            "gendd",
            2,
            77.0,
            test_linear=71.0,
            test_mean=77.0,
            curve=[61.0, 60.0, 70.0, 65.0],
            monitor="val/mean",
            train_seconds=40.0,
            peak_memory_mb=300.0,
            multiply_adds=1000,
        ),
        row("gendd", 2, 99.0, rate=0.2, chosen=False),
        row("gendd", 1, None, error="lost"),
    ]
    kd, gendd = summarise(plan([0, 1, 2]), rows)
    assert (kd["test"], kd["test_sd"], kd["seeds"]) == (71.0, 1.0, 3)
    assert (kd["linear"], kd["linear_sd"], kd["mean"], kd["mean_sd"]) == (71.0, 1.0, None, None)
    assert kd["difference"] is None and kd["pairs"] is None
    assert kd["train_seconds"] == 12.0
    # its own final value is reached in its last epoch
    assert kd["seconds_to_reference"] == 12.0
    assert (gendd["test"], gendd["seeds"], gendd["errors"]) == (75.0, 2, 1)
    assert gendd["test_sd"] == pytest.approx(8**0.5)
    assert (gendd["pairs"], gendd["difference"]) == (2, 4.5)
    # with two values a quarter of the resamples contain only one of them
    assert (gendd["difference_low"], gendd["difference_high"]) == (3.0, 6.0)
    # 12.7062 is the 97.5 % quantile of Student's t with one degree of freedom
    half = 12.7062 * (4.5 / 2**0.5) / 2**0.5 / 1.5
    assert gendd["difference_t_low"] == pytest.approx(4.5 - 12.7062 * 1.5, abs=1e-3)
    assert gendd["difference_t_high"] == pytest.approx(4.5 + half, abs=1e-3)
    # seed 0 reaches 60 after 2 of 4 epochs of 20 s; seed 2 reaches 61 after 1 of 4 of 40 s
    assert gendd["seconds_to_reference"] == 10.0
    assert (gendd["peak_memory_mb"], gendd["multiply_adds"]) == (300.0, 1000)


def test_accuracy_by_class_size_is_averaged_and_shown() -> None:
    rows = [
        row("kd", 0, 60.0, many=80.0, medium=60.0, few=10.0),
        row("kd", 1, 62.0, many=82.0, medium=60.0, few=14.0),
        row("gendd", 0, 64.0),
    ]
    found = summarise(plan([0, 1]), rows)
    assert [found[0][name] for name in ("many", "medium", "few")] == [81.0, 60.0, 12.0]
    assert found[0]["few_sd"] == pytest.approx(8**0.5) and found[1]["few"] is None
    shown = markdown(found).splitlines()
    assert "| many, % | medium, % | few, % |" in shown[0]
    assert "| 81.00 ± 1.41 | 60.00 ± 0.00 | 12.00 ± 2.83 |" in shown[2]
    assert "many" not in markdown(summarise(plan([0]), [row("kd", 0, 60.0), row("gendd", 0, 61.0)]))


def test_one_seed_has_no_interval_and_what_is_not_reached_is_empty() -> None:
    rows = [
        row("kd", 0, 70.0, curve=[50.0, 80.0], monitor="val/linear", train_seconds=1.0),
        row("gendd", 0, 73.0, curve=[50.0, 70.0], monitor="val/mean", train_seconds=1.0),
    ]
    _, gendd = summarise(plan([0]), rows)
    assert (gendd["difference"], gendd["difference_low"], gendd["difference_t_low"]) == (3.0, None, None)
    assert gendd["test_sd"] is None
    assert gendd["seconds_to_reference"] is None
    # losses and accuracies are not compared
    rows[0] |= {"monitor": "val/diffusion", "curve": [0.5]}
    assert summarise(plan([0]), rows)[1]["seconds_to_reference"] is None


def test_the_bootstrap_is_numpys_percentiles_of_the_means_of_resamples() -> None:
    values = [0.3, -1.0, 2.5, 0.7]
    drawn = np.random.default_rng(0).integers(0, 4, (10_000, 4))
    means = np.array([np.mean([values[index] for index in each]) for each in drawn])
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(np.quantile(means, 0.025))
    assert high == pytest.approx(np.quantile(means, 0.975))
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([1.0]) == (None, None) == t_interval([1.0])
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0) == t_interval([2.0, 2.0, 2.0])
    # the t interval of three values is the wider one
    three = [0.0, 1.0, 2.0]
    t_low, t_high = t_interval(three)
    assert t_low == pytest.approx(1 - 4.30265 / 3**0.5, abs=1e-4)
    assert t_low is not None and t_high is not None
    low, high = bootstrap_interval(three)
    assert low is not None and high is not None and t_low < low < high < t_high


def test_the_best_rate_is_the_highest_accuracy_or_the_lowest_loss() -> None:
    figures = [(0.1, 50.0), (0.2, 70.0), (0.4, 70.0)]
    rows = [row("a", 0, 1.0, rate=rate, validation=value, monitor="val/mean") for rate, value in figures]
    assert best_rate(rows) == 0.2
    losses = [each | {"monitor": "val/diffusion"} for each in rows]
    assert best_rate(losses) == 0.1
    assert best_rate([rows[0], rows[1] | {"error": "lost", "validation": None}]) == 0.1
    assert best_rate([]) is None
    assert best_rate([rows[0] | {"validation": None}]) == 0.1


def test_rows_come_back_from_the_file_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    rows = [
        row("kd", 0, 70.25, curve=[1.5, 2.0], steps=3, epochs=1, readout="linear"),
        row("gendd", 1, None, error='one, "two"', chosen=False),
    ]
    write_rows(path, rows)
    assert read_rows(path) == rows
    before = path.stat().st_mtime_ns
    write_rows(path, read_rows(path))
    assert path.stat().st_mtime_ns == before
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match="expected a CSV of gendd compare; it lacks the columns"):
        read_rows(path)


def test_results_that_would_be_lost_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    write_rows(path, [row("kd", 0, 70.25)])
    header, line = path.read_text(encoding="utf-8").splitlines()
    for text, told in (
        (f"{header.replace('validation', 'valid')}\n{line}\n", "it lacks the columns validation"),
        (f"{header},note\n{line},mine\n", "its columns note are unknown and would be lost"),
        (f"{header}\n{line}\n{line[:20]}\n", "line 3 has more or fewer fields than the first"),
        (f"{header}\n{line},1\n", "line 2 has more or fewer fields than the first"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=told):
            read_rows(path)
        assert path.read_text(encoding="utf-8") == text
    # files of versions before these columns
    old = [header.split(","), line.split(",")]
    kept = [place for place, name in enumerate(old[0]) if name not in ("many", "medium", "few")]
    path.write_text("".join(",".join(each[place] for place in kept) + "\n" for each in old), encoding="utf-8")
    assert read_rows(path) == [row("kd", 0, 70.25)]


def test_tables_and_the_page_hold_every_method(tmp_path: Path) -> None:
    methods = {"kd": {"method": "kd"}, "gendd": {}, "soft": {"method": "kd", "label": "<soft>"}, "dead": {}}
    comparison = read_plan(small(seeds=[0, 1], methods=methods))
    rows = [
        row(
            name,
            seed,
            test + seed,
            curve=[10.0, test],
            monitor="val/linear",
            train_seconds=3.0,
            multiply_adds=10**6,
            parameters=20_000,
            epochs=2,
        )
        for name, test in (("kd", 70.0), ("gendd", 71.0), ("soft", 69.0))
        for seed in (0, 1)
    ]
    rows.append(row("dead", 0, None, error="<b>lost</b>"))
    summary = summarise(comparison, rows)
    text = markdown(summary)
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == [
        "| KD",
        "| GenDD",
        "| <soft>",
        "| dead",
    ]
    assert "70.50 ± 0.71" in text and "+1.00" in text and "1.00 M" in text
    write_summary(summary, tmp_path)
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == text
    assert (tmp_path / "summary.csv").read_text(encoding="utf-8").count("\n") == 5
    html = page(comparison, rows, summary)
    for label in ("KD", "GenDD", "&lt;soft&gt;", "dead", "&lt;b&gt;lost&lt;/b&gt;"):
        assert label in html
    assert "<soft>" not in html and "<b>lost" not in html
    # light and dark of three plots
    assert html.count("data:image/svg+xml") == 6
    assert "prefers-color-scheme:dark" in html
    for number in range(4):
        assert html.count(f".dot.m{number}{{") == 2
    assert "http" not in html.replace("http-equiv", "")


def test_seconds_are_those_of_steps_measured_side_by_side_where_there_are_some() -> None:
    told = {"curve": [50.0, 60.0, 70.0, 80.0], "monitor": "val/linear", "steps": 8, "train_seconds": 99.0}
    rows = [
        row("kd", 0, 80.0, **{**told, "curve": [50.0, 50.0, 60.0, 60.0]}, step_seconds=0.25),
        row("gendd", 0, 80.0, **told, step_seconds=0.5),
    ]
    kd, gendd = summarise(plan([0]), rows)
    assert kd["seconds_to_reference"] == 0.25 * 8 * 3 / 4
    assert gendd["seconds_to_reference"] == 0.5 * 8 * 2 / 4


def test_seconds_and_memory_are_those_of_one_machine() -> None:
    told = {"curve": [50.0, 80.0], "monitor": "val/linear", "steps": 8}
    rows = [
        row("kd", 0, 80.0, **told, machine="a", train_seconds=4.0, peak_memory_mb=10.0),
        row("kd", 1, 80.0, **told, machine="a", train_seconds=6.0, peak_memory_mb=10.0),
        row("gendd", 0, 81.0, **told, machine="a", train_seconds=8.0, peak_memory_mb=20.0),
        row("gendd", 1, 83.0, **told, machine="b", train_seconds=900.0, peak_memory_mb=500.0),
    ]
    kd, gendd = summarise(plan([0, 1]), rows)
    assert (kd["train_seconds"], gendd["train_seconds"], gendd["peak_memory_mb"]) == (5.0, 8.0, 20.0)
    assert gendd["test"] == 82.0 and gendd["seconds_to_reference"] == 8.0


def test_a_top1_and_an_agreement_have_no_difference() -> None:
    rows = [
        row("kd", 0, 70.0, readout="linear", test_linear=70.0, agreement=90.0),
        row("gendd", 0, 80.0, readout="linear", agreement=80.0),
    ]
    found = {each["method"]: each for each in summarise(plan([0]), rows)}
    assert found["gendd"]["test"] == 80.0 and found["gendd"]["difference"] is None
    rows[1] |= {"test_linear": 80.0}
    found = {each["method"]: each for each in summarise(plan([0]), rows)}
    assert found["gendd"]["difference"] == pytest.approx(10.0)
