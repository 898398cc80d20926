"""The comparison as rows and as it is printed."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from reports import COST, STUDENT, Page, agreed, by_shots, embedded, metrics, unlabelled
from rich.console import Console

from gendd.report import ReportData, print_table, rows, write_report


def test_rows_are_teacher_baselines_as_trained_then_readouts() -> None:
    table = rows(metrics())
    assert [
        (r["method"], r["top1"], r["parameters"], r["multiply_adds"], r["latency_ms"]) for r in table
    ] == [
        ("teacher", 72.34, 855_770, 125_800_000, 2.5),
        ("student alone", 69.06, 272_474, 41_200_000, 0.9),
        ("KL distillation", 70.70, 272_474, 41_200_000, 0.9),
        ("GenDD · linear", 71.90, 272_474, 41_200_000, 0.9),
        ("GenDD · mean", 72.10, 272_474, 43_200_000, 1.0),
        ("GenDD · sample", 72.40, 272_474, 18_500_000_000, 412.0),
    ]
    assert [r["chosen"] for r in table] == [False] * 4 + [True, False]
    assert table[-1]["detail"] == "100 steps, 5 samples, guidance 2"


@pytest.mark.parametrize(
    ("method", "label"),
    [("kl", "KL distillation"), ("kd", "KD"), ("supervised", "trained on labels"), (None, "student")],
)
def test_rows_of_a_run_of_another_method(method: str | None, label: str) -> None:
    plain = {"run": {"method": method}, "student": STUDENT | {"readouts": {"linear": COST | {"top1": 1.0}}}}
    (row,) = rows(plain)
    assert (row["method"], row["chosen"], row["top1"]) == (label, True, 1.0)


def test_rows_know_gendd_by_its_readouts_where_the_method_is_not_named() -> None:
    plain = metrics()
    del plain["run"]["method"]
    assert rows(plain) == rows(metrics())


def test_rows_without_labels_have_no_accuracy() -> None:
    assert {row["top1"] for row in rows(unlabelled())} == {None}


def printed(plain: dict[str, Any]) -> list[str]:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    print_table(plain, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_printed_table_is_whole_at_80_columns() -> None:
    lines = printed(metrics())
    assert len(lines) == 7
    assert max(len(line) for line in lines) <= 80
    assert [re.split(r"\s{2,}", line.strip()) for line in lines] == [
        ["method", "top-1 %", "params", "multiply-adds", "ms/image"],
        ["teacher", "72.34", "0.86 M", "126 M", "2.50"],
        ["student alone", "69.06", "0.27 M", "41.2 M", "0.900"],
        ["KL distillation", "70.70", "0.27 M", "41.2 M", "0.900"],
        ["GenDD · linear", "71.90", "0.27 M", "41.2 M", "0.900"],
        ["GenDD · mean", "72.10", "0.27 M", "43.2 M", "1.00"],
        ["GenDD · sample", "72.40", "0.27 M", "18.5 G", "412"],
    ]


def test_printed_table_shows_agreement_where_there_is_no_accuracy() -> None:
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed(agreed())]
    assert lines[0] == ["method", "agree %", "params", "multiply-adds", "ms/image"]
    assert [line[1] for line in lines[1:]] == ["–", "63.00", "64.00", "61.00", "62.00", "60.00"]


def test_printed_table_shows_neighbours_where_there_is_no_readout() -> None:
    assert [re.split(r"\s{2,}", line.strip()) for line in printed(embedded())] == [
        ["method", "kNN %", "params", "multiply-adds", "ms/image"],
        ["teacher", "70.00", "0.86 M", "126 M", "2.50"],
        ["GenDD · feature", "64.00", "0.27 M", "41.2 M", "0.900"],
        ["GenDD · generated", "66.00", "0.30 M", "41.2 M", "0.900"],
    ]
    assert [row["chosen"] for row in rows(embedded())] == [False, False, True]


def test_without_any_label_the_cosine_is_shown(tmp_path: Path) -> None:
    plain = embedded()
    for entry in (plain["teacher"]["embedding"], *plain["student"]["embedding"].values()):
        entry |= {"knn": None, "linear_probe": None}
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed(plain)]
    assert lines[0][1] == "cosine" and [line[1] for line in lines[1:]] == ["–", "–", "0.81"]
    text = write_report(ReportData(title="x", metrics=plain), tmp_path / "r.html").read_text("utf-8")
    assert "Student, cosine" in "".join(Page(text).text)


def test_printed_table_of_every_figure_fits_80_columns() -> None:
    plain = embedded(readouts=True)
    plain["student"]["readouts"]["mean"] |= {"top1": None, "agreement": 61.0}
    lines = printed(plain)
    assert max(len(line) for line in lines) <= 80 and len(lines) == 9
    assert re.split(r"\s{2,}", lines[0].strip())[:4] == ["method", "top-1 %", "agree %", "kNN %"]
    (mean,) = [line for line in lines if "mean" in line]
    assert re.split(r"\s{2,}", mean.strip())[:4] == ["GenDD · mean", "–", "61.00", "–"]


def test_labelled_rows_show_accuracy_alone() -> None:
    plain = metrics()
    for entry in plain["student"]["readouts"].values():
        entry["agreement"] = 50.0
    assert printed(plain) == printed(metrics())


def test_printed_table_dashes_what_was_not_measured() -> None:
    assert re.split(r"\s{2,}", printed(unlabelled())[1].strip())[1] == "–"


def test_printed_accuracy_by_shots() -> None:
    stream = io.StringIO()
    print_table(by_shots(), Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("top-1 % by shots"))
    assert lines[start].split() == [
        "top-1",
        "%",
        "by",
        "shots",
        "many",
        "(35)",
        "medium",
        "(64)",
        "few",
        "(1)",
    ]
    shown = {line.rsplit(None, 3)[0]: line.split()[-3:] for line in lines[start + 1 :]}
    assert shown["teacher"] == ["80.00", "60.50", "–"]
    assert shown["GenDD · sample"] == ["81.00", "60.50", "–"]
