"""The comparison table and the HTML report."""

from __future__ import annotations

import base64
import io
import os
import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from rich.console import Console

from gendd import report
from gendd.errors import UserError
from gendd.report import Example, ReportData, print_table, rows, update_report, write_report

STUDENT = {"name": "cifar/resnet20", "parameters": 272_474}
COST = {"multiply_adds": 41_200_000, "latency_ms": 0.9}


def metrics() -> dict[str, Any]:
    return {
        "run": {"name": "x", "method": "gendd", "seed": 7, "test_images": 10_000, "device": "cpu"},
        "teacher": {
            "name": "cifar/resnet56",
            "parameters": 855_770,
            "multiply_adds": 125_800_000,
            "latency_ms": 2.5,
            "top1": 72.34,
            "top5": 92.0,
        },
        "student": STUDENT
        | {
            "readouts": {
                "sample": {
                    "top1": 72.40,
                    "top5": 92.5,
                    "multiply_adds": 18_500_000_000,
                    "latency_ms": 412.0,
                    "steps": 100,
                    "guidance": 2.0,
                    "num_samples": 5,
                },
                "linear": COST | {"top1": 71.90, "top5": 92.1},
                "mean": {"top1": 72.10, "top5": 92.2, "multiply_adds": 43_200_000, "latency_ms": 1.0},
            },
            "readout": "mean",
            "train_seconds": 9000.0,
        },
        "baselines": {
            "kl": STUDENT | COST | {"top1": 70.70, "top5": 91.0, "train_seconds": 1.0},
            "supervised": STUDENT | COST | {"top1": 69.06, "top5": 90.0, "train_seconds": 1.0},
        },
    }


def unlabelled() -> dict[str, Any]:
    plain = metrics()
    entries = [plain["teacher"], *plain["student"]["readouts"].values(), *plain["baselines"].values()]
    for entry in entries:
        entry |= {"top1": None, "top5": None}
    return plain


def log(final: float) -> list[dict[str, float]]:
    return [
        {"step": 5 * i, "epoch": i, "train/loss": 2.0 / (i + 1), "train/diffusion": 1.0} for i in range(6)
    ] + [{"step": 5 * i + 4, "epoch": i, "val/top1": final - 6 + i} for i in range(6)]


def full() -> ReportData:
    features = np.random.default_rng(0).normal(size=(60, 8))
    image = (np.arange(64, dtype=np.uint8) * 4).reshape(8, 8)
    return ReportData(
        title="a <run> & more",
        metrics=metrics(),
        curves={"gendd": log(72), "kl": log(70), "supervised": log(69), "teacher": log(73)},
        confusion=torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]]),
        class_names=["<cat>", "$dog$", "猫"],
        teacher_features=features,
        generated_features=features + 0.1,
        feature_labels=np.arange(60) % 3,
        examples=[Example(image, "$dog$", "<cat>", 0.61), Example(image, "猫", "猫", 0.99)] * 15,
        config_yaml="seed: 7\nout: '<script>alert(1)</script>'\n",
    )


class Page(HTMLParser):
    """Collects tags and text, and checks that elements close in order."""

    VOID = frozenset({"meta", "img", "source", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str, **wanted: str) -> int:
        renamed = {key.rstrip("_"): value for key, value in wanted.items()}
        return sum(name == tag and renamed.items() <= attrs.items() for name, attrs in self.tags)

    def figures(self, attribute: str = "src") -> dict[str, ElementTree.Element]:
        """The SVG figures by their alt text; ``srcset`` gives the dark ones."""
        light = {a["alt"]: a["src"] for t, a in self.tags if t == "img" and "svg" in str(a["src"])}
        dark = dict(zip(light, [a["srcset"] for t, a in self.tags if t == "source"], strict=True))
        chosen = light if attribute == "src" else dark
        return {str(alt): ElementTree.fromstring(decode(str(url))) for alt, url in chosen.items()}


HEADINGS = (
    "Comparison",
    "Accuracy against inference cost",
    "Validation accuracy while training",
    "Losses of GenDD",
    "Confusion matrix",
    "Generated features beside the teacher's",
    "Examples",
    "Settings",
)


def decode(url: str) -> bytes:
    return base64.b64decode(url.split(";base64,")[1], validate=True)


def words(figure: ElementTree.Element) -> list[str]:
    return ["".join(node.itertext()) for node in figure.iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("run") / "deeper" / "report.html"
    assert write_report(full(), path) == path
    return path.read_text(encoding="utf-8")


# rows and print_table


def test_rows_are_teacher_baselines_readouts_in_a_fixed_order() -> None:
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
    [("kl", "KL distillation"), ("kd", "KD"), ("supervised", "student alone"), (None, "student")],
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


def agreed() -> dict[str, Any]:
    """Of a teacher of other classes: agreement alone."""
    plain = unlabelled()
    for index, entry in enumerate([*plain["student"]["readouts"].values(), *plain["baselines"].values()]):
        entry["agreement"] = 60.0 + index
    return plain


def embedded(readouts: bool = False) -> dict[str, Any]:
    """Of a teacher without a classifier."""
    plain = metrics()
    plain["teacher"] |= {"top1": None, "top5": None, "embedding": {"knn": 70.0, "linear_probe": 71.0}}
    plain["student"]["embedding"] = {
        "feature": COST | {"knn": 64.0, "linear_probe": 68.0, "parameters": 270_000},
        "generated": COST | {"knn": 66.0, "linear_probe": 67.0, "cosine": 0.8124, "parameters": 300_000},
    }
    if not readouts:
        plain["baselines"] = {}
        plain["student"] |= {"readouts": {}, "readout": None}
    return plain


def test_printed_table_shows_agreement_where_there_is_no_accuracy() -> None:
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed(agreed())]
    assert lines[0] == ["method", "agree %", "params", "multiply-adds", "ms/image"]
    assert [line[1] for line in lines[1:]] == ["–", "64.00", "63.00", "61.00", "62.00", "60.00"]


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (950, "950"),
        (1_234, "1.23 k"),
        (19_600, "19.6 k"),
        (99_999, "0.10 M"),
        (999_999, "1.00 M"),
        (999_999_999, "1.00 G"),
        (2_500_000_000_000, "2.50 T"),
    ],
)
def test_counts(value: float | None, text: str) -> None:
    assert report._count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.34, "2.3 s"),
        (59.99, "1 min 00 s"),
        (83, "1 min 23 s"),
        (599.9, "10 min"),
        (3599, "1 h 00 min"),
        (9000, "2 h 30 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert report._duration(seconds) == text


@pytest.mark.parametrize(
    ("large", "small", "expected"),
    [
        (820, 100, ("8.2×", "fewer")),
        (100, 14_700, ("147×", "more")),
        (100, 100, ("1×", "as many")),
        (1, 0, None),
    ],
)
def test_ratios(large: float, small: float, expected: tuple[str, str] | None) -> None:
    assert report._ratio(large, small) == expected


# mathematics of the figures


def test_projection_uses_the_teachers_components_for_both() -> None:
    direction = np.array([0.6, 0.8, 0.0])
    other = np.array([0.0, 0.0, 1.0])
    first, second = np.array([-3.0, -1.0, 1.0, 3.0]), np.array([1.0, -1.0, -1.0, 1.0])
    teacher = 5 + np.outer(first, direction) + np.outer(second, other)
    generated = teacher + 10 * direction
    teacher_xy, generated_xy, shares = report._project(teacher, generated)
    signs = np.sign(teacher_xy[-1])
    np.testing.assert_allclose(teacher_xy * signs, np.stack([first, second], 1), atol=1e-12)
    np.testing.assert_allclose(generated_xy * signs, np.stack([first + 10, second], 1), atol=1e-12)
    np.testing.assert_allclose(shares, [20 / 24, 4 / 24], atol=1e-12)


def test_projection_of_one_dimension() -> None:
    points, _, shares = report._project(np.array([[1.0], [3.0]]), np.zeros((2, 1)))
    np.testing.assert_allclose(np.abs(points), [[1, 0], [1, 0]])
    np.testing.assert_allclose(shares, [1, 0])


def test_shares_and_confusions() -> None:
    counts = np.array([[6, 2, 0], [5, 5, 0], [0, 0, 0]])
    np.testing.assert_array_equal(report._shares(counts), [[0.75, 0.25, 0], [0.5, 0.5, 0], [0, 0, 0]])
    assert report._confusions(counts) == [(1, 0, 0.5, 5), (0, 1, 0.25, 2)]


def test_running_mean() -> None:
    np.testing.assert_allclose(report._smooth(np.array([0.0, 3.0, 6.0, 9.0]), 3), [1.5, 3, 6, 7.5])


def test_series_leaves_out_gaps() -> None:
    history = [{"step": 1, "a": 2.0}, {"step": 2}, {"step": 3, "a": float("nan")}, {"a": 1.0}]
    steps, values = report._series(history, "a", "step")
    assert (steps.tolist(), values.tolist()) == ([1.0], [2.0])


def test_labels_of_crowded_points_do_not_touch() -> None:
    plain = metrics()
    for top1, entry in zip((72.0, 72.02), plain["baselines"].values(), strict=True):
        entry["top1"] = top1
    plain["student"]["readouts"]["linear"]["top1"] = 72.01
    figure = report._draw_costs(rows(plain))(report._LIGHT)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = [text for text in axes.texts if text.get_text()]
    assert len(labels) == 6
    boxes = [Text.get_window_extent(text) for text in labels]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    inside = axes.get_window_extent().padded(3)
    assert all(inside.containsx(x) for box in boxes for x in (box.x0, box.x1))
    assert all(inside.containsy(y) for box in boxes for y in (box.y0, box.y1))


# the page


def test_page_holds_every_section_in_order(html: str) -> None:
    page = Page(html)
    assert re.findall(r"<h2>(.*?)</h2>", html) == [heading.replace("'", "&#x27;") for heading in HEADINGS]
    assert page.count("picture") == 5
    for number in ("72.10 ", "−0.24 ", "+3.04 ", "+1.40 ", "3.1× ", "2.9× ", "2 h 30 min "):
        assert number in page.text


def test_page_needs_nothing_from_outside(html: str) -> None:
    page = Page(html)
    links = [a[key] for _, a in page.tags for key in ("src", "srcset", "href") if key in a]
    assert len(links) == 10 + 24
    assert all(str(link).startswith("data:image/") for link in links)
    for outside in ("url(", "@import", "<script"):
        assert outside not in html
    for kind in ("src", "srcset"):
        for figure in page.figures(kind).values():
            for node in figure.iter():
                for name, value in node.attrib.items():
                    assert not name.endswith("href") or value.startswith(("#", "data:")), value


def test_text_is_escaped(html: str) -> None:
    page = Page(html)
    assert page.text.count("a <run> & more") == 1
    assert not {tag for tag, _ in page.tags} & {"run", "cat", "script"}
    assert full().config_yaml in page.text


def test_confusion_figure_shows_percent_of_the_row(html: str) -> None:
    found = words(Page(html).figures()["Confusion matrix of the student"])
    assert sorted(word for word in found if word.isdigit()) == ["100", "25", "75"]
    assert found.count("<cat>") == found.count("$dog$") == found.count("猫") == 2


def test_a_method_has_one_colour_in_all_figures(html: str) -> None:
    for kind, theme in (("src", report._LIGHT), ("srcset", report._DARK)):
        figures = Page(html).figures(kind)
        for alt in list(figures)[:2]:
            text = ElementTree.tostring(figures[alt], encoding="unicode")
            for method in ("teacher", "supervised", "kl", "gendd"):
                assert theme.methods[method] in text, (kind, alt, method)


def test_dark_figures_use_dark_colours_only(html: str) -> None:
    for alt, figure in Page(html).figures("srcset").items():
        text = ElementTree.tostring(figure, encoding="unicode")
        assert report._DARK.muted in text, alt
        for color in (report._LIGHT.ink, report._LIGHT.muted, report._LIGHT.grid):
            assert color not in text, (alt, color)
        for label in figure.iter("{http://www.w3.org/2000/svg}text"):
            assert "fill: #" in label.get("style", ""), (alt, words(figure))


def test_examples_are_the_first_24_pixel_for_pixel(html: str) -> None:
    page = Page(html)
    images = [str(a["src"]) for tag, a in page.tags if tag == "img" and "png" in str(a["src"])]
    assert len(images) == 24
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(decode(images[0])))), full().examples[0].image
    )
    assert page.count("figure", class_="wrong") == 12
    assert page.text.count("✗ <cat>") == page.text.count("is $dog$") == page.text.count("✓ 猫") == 12


def test_report_is_reproducible_and_leaves_matplotlib_alone(html: str, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    assert write_report(full(), tmp_path / "r.html").read_text(encoding="utf-8") == html
    assert dict(matplotlib.rcParams) == before


def test_report_without_labels_curves_or_features(tmp_path: Path) -> None:
    path = write_report(ReportData(title="bare", metrics=unlabelled()), tmp_path / "r.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Comparison", "Settings"]
    assert page.count("picture") == 0
    assert "no labels to measure accuracy with" in page.text


def test_report_of_agreement_alone(tmp_path: Path) -> None:
    text = write_report(ReportData(title="x", metrics=agreed()), tmp_path / "r.html").read_text("utf-8")
    page = Page(text)
    assert re.findall(r"<h2>(.*?)</h2>", text)[:2] == ["Comparison", "Agreement against inference cost"]
    said = "".join(page.text)
    assert "Student, agreement" in said and "Agreement, %" in said and "Top-1" not in said
    assert "no labels to measure accuracy with" not in said
    shown = words(page.figures()["Agreement with the teacher of every method against its multiply-adds"])
    assert "agreement with the teacher, %" in shown


def test_report_of_features_alone(tmp_path: Path) -> None:
    text = write_report(ReportData(title="x", metrics=embedded()), tmp_path / "r.html").read_text("utf-8")
    said = "".join(Page(text).text)
    assert "Student, 20-NN" in said and "Linear probe, %" in said and "0.81" in said
    assert "Gap to the teacher" in said and "−4.00" in said


def test_without_readouts_the_diffusion_loss_is_drawn(tmp_path: Path) -> None:
    curve = [{"step": 5 * i + 4, "epoch": i, "val/diffusion": 0.9 / (i + 1)} for i in range(6)]
    data = ReportData(title="x", metrics=embedded(), curves={"gendd": curve})
    page = Page(write_report(data, tmp_path / "r.html").read_text("utf-8"))
    assert "Diffusion loss of the validation images while training" in "".join(page.text)
    shown = words(page.figures()["Validation diffusion loss of every method over training"])
    assert "validation diffusion loss" in shown and "GenDD  0.1500" in shown


def test_report_of_many_classes_and_unlabelled_photos(tmp_path: Path) -> None:
    photo = np.zeros((300, 200, 3), dtype=np.uint8)
    data = ReportData(
        title="many",
        metrics=unlabelled(),
        confusion=np.eye(100, dtype=int),
        class_names=[f"class {i}" for i in range(100)],
        examples=[Example(photo, None, "class 3", 0.5)],
    )
    page = Page(write_report(data, tmp_path / "r.html").read_text(encoding="utf-8"))
    assert not [
        word for word in words(page.figures()["Confusion matrix of the student"]) if "class 3" in word
    ]
    assert page.count("figure", class_="wrong") == 0
    (encoded,) = [str(a["src"]) for tag, a in page.tags if tag == "img" and "png" in str(a["src"])]
    assert Image.open(io.BytesIO(decode(encoded))).size == (149, 224)


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
    Page(new)
    titles = re.findall(r"<h2>(.*?)</h2>", old)
    assert re.findall(r"<h2>(.*?)</h2>", new) == titles and len(titles) == 8
    found = [dict(re.findall(r"(?s)<section><h2>(.*?)</h2>(.*?)</section>", text)) for text in (old, new)]
    assert [title for title in titles if found[0][title] != found[1][title]] == [
        "Comparison",
        "Accuracy against inference cost",
        "Settings",
    ]
    assert "77.77" in found[1]["Comparison"] and "fitted anew to labels" in found[1]["Settings"]


def test_sections_that_are_new_take_the_place_of_what_they_replace(tmp_path: Path) -> None:
    path = write_report(ReportData(title="x", metrics=agreed(), curves={"gendd": log(70)}), tmp_path / "r")
    content = full()
    data = ReportData("x", metrics(), confusion=content.confusion, class_names=content.class_names)
    text = update_report(data, path).read_text(encoding="utf-8")
    # agreement against cost is not true any more
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Comparison",
        "Accuracy against inference cost",
        "Confusion matrix",
        "Validation accuracy while training",
        "Losses of GenDD",
        "Settings",
    ]


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


def test_without_labels_agreement_with_the_teacher_is_drawn(tmp_path: Path) -> None:
    data = full()
    for key in ("gendd", "kl"):
        for row in data.curves[key]:
            if "val/top1" in row:
                row["val/agreement"] = row.pop("val/top1")
    del data.curves["supervised"]  # the teacher's own log is of labels
    page = Page(write_report(data, tmp_path / "report.html").read_text(encoding="utf-8"))
    text = "".join(page.text)
    assert "Agreement with the teacher while training" in text
    assert "Validation accuracy while training" not in text
    shown = words(page.figures()["Validation agreement with the teacher of every method over training"])
    assert "validation agreement with the teacher, %" in shown
    assert [word for word in shown if word.startswith(("GenDD", "KL", "teacher"))] == [
        "KL distillation  69.00",
        "GenDD  71.00",
    ]


def test_what_validation_measured() -> None:
    accuracy, agreement = [{"val/top1": 1.0}], [{"val/agreement": 1.0}]
    assert report._validation_metric({"gendd": accuracy, "teacher": accuracy}) == "val/top1"
    assert report._validation_metric({"gendd": agreement, "teacher": accuracy}) == "val/agreement"
    assert report._validation_metric({"gendd": [{"val/top1": 1.0, "val/agreement": 1.0}]}) == "val/top1"
    assert report._validation_metric({}) == "val/top1"


def test_accuracy_by_shots(tmp_path: Path) -> None:
    found = metrics()
    found["run"]["shot_thresholds"] = [20, 100]
    entries = [found["teacher"], *found["student"]["readouts"].values(), *found["baselines"].values()]
    for number, entry in enumerate(entries):
        entry["groups"] = {
            "many": {"top1": 80.0 + number, "classes": 35, "images": 7000},
            "medium": {"top1": 60.5, "classes": 64, "images": 3000},
            "few": {"top1": None, "classes": 1, "images": 0},
        }
    page = Page(write_report(ReportData("t", found), tmp_path / "r.html").read_text(encoding="utf-8"))
    text = " ".join(page.text)
    assert "Accuracy by training images a class" in text
    assert "many: more than 100 training images (35 classes, 7,000 test images)" in text
    assert "medium: 20 to 100 training images (64 classes, 3,000 test images)" in text
    stream = io.StringIO()
    print_table(found, Console(file=stream, width=80))
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
