"""Reports as files: written atomically, and updated."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from reports import Page, agreed, full, judged, log, metrics, unlabelled

from gendd.errors import UserError
from gendd.report import ReportData, update_report, write_report


def test_figures_that_change_leave_the_rest_of_the_report(tmp_path: Path) -> None:
    path = write_report(full(), tmp_path / "report.html")
    old = path.read_text(encoding="utf-8")
    data = ReportData(title="a <run> & more", metrics=metrics())
    data.metrics["student"]["readouts"]["linear"]["top1"] = 77.77
    data.metrics["student"]["probe"] = {"kept": "refitted", "target": "labels"}
    assert update_report(data, path, tmp_path / "other.html") == tmp_path / "other.html"
    assert path.read_text(encoding="utf-8") == old
    assert update_report(data, path) == path
    new = path.read_text(encoding="utf-8")
    assert new == (tmp_path / "other.html").read_text(encoding="utf-8")
    # pages of earlier versions escape the apostrophe in another way
    path.write_text(old.replace("&#39;", "&#x27;"), encoding="utf-8")
    assert update_report(data, path).read_text(encoding="utf-8").replace("&#x27;", "&#39;") == new
    Page(new)
    titles = re.findall(r"<h2>(.*?)</h2>", old)
    assert re.findall(r"<h2>(.*?)</h2>", new) == titles and len(titles) == 8
    found = [dict(re.findall(r"(?s)<section><h2>(.*?)</h2>(.*?)</section>", text)) for text in (old, new)]
    assert [title for title in titles if found[0][title] != found[1][title]] == [
        "Comparison",
        "Accuracy against inference cost",
        "Settings",
    ]
    assert "77.77" in found[1]["Comparison"] and "refitted to labels" in found[1]["Settings"]


def test_sections_that_are_new_take_the_place_of_what_they_replace(tmp_path: Path) -> None:
    path = write_report(ReportData(title="x", metrics=agreed(), curves={"gendd": log(70)}), tmp_path / "r")
    content = full()
    data = ReportData("x", metrics(), confusion=content.confusion, class_names=content.class_names)
    text = update_report(data, path).read_text(encoding="utf-8")
    # agreement against cost is no longer valid
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Comparison",
        "Accuracy against inference cost",
        "Confusion matrix",
        "Validation accuracy while training",
        "Losses of GenDD",
        "Settings",
    ]


def test_new_answers_are_not_beside_the_teachers_of_before(tmp_path: Path) -> None:
    path = write_report(judged(), tmp_path / "report.html")
    data = judged()
    del data.answers["teacher"]
    text = update_report(data, path).read_text(encoding="utf-8")
    assert "Mistakes beside" not in text and "Hardest classes" in text
    update_report(ReportData(data.title, metrics()), write_report(judged(), path))
    assert "Mistakes beside" in path.read_text(encoding="utf-8")


def test_a_failed_write_keeps_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(ReportData(title="bare", metrics=unlabelled()), path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^Expected a file .* got the folder .*; add a file name to it\.$"):
        write_report(ReportData(title="bare", metrics=unlabelled()), tmp_path)
