"""The page: its sections, figures and examples."""

from __future__ import annotations

import io
import re
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image
from reports import Page, agreed, by_shots, decode, embedded, full, unlabelled, words

from gendd.report import Example, ReportData, write_report
from gendd.report.drawing import DARK, LIGHT

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


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("run") / "deeper" / "report.html"
    assert write_report(full(), path) == path
    return path.read_text(encoding="utf-8")


def test_page_holds_every_section_in_order(html: str) -> None:
    page = Page(html)
    assert re.findall(r"<h2>(.*?)</h2>", html) == [heading.replace("'", "&#39;") for heading in HEADINGS]
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
    for kind, theme in (("src", LIGHT), ("srcset", DARK)):
        figures = Page(html).figures(kind)
        for alt in list(figures)[:2]:
            text = ElementTree.tostring(figures[alt], encoding="unicode")
            for method in ("teacher", "supervised", "kl", "gendd"):
                assert theme.color(method) in text, (kind, alt, method)


def test_dark_figures_use_dark_colours_only(html: str) -> None:
    for alt, figure in Page(html).figures("srcset").items():
        text = ElementTree.tostring(figure, encoding="unicode")
        assert DARK.muted in text, alt
        for color in (LIGHT.ink, LIGHT.muted, LIGHT.grid):
            assert color not in text, (alt, color)
        for label in figure.iter("{http://www.w3.org/2000/svg}text"):
            assert "fill: #" in label.get("style", ""), (alt, words(figure))


def test_on_a_phone_tables_and_wide_figures_scroll_by_themselves(html: str) -> None:
    page = Page(html)
    assert page.count("meta", name="viewport", content="width=device-width, initial-scale=1") == 1
    assert page.count("table") == page.count("div", class_="scroll") > 0
    widths = [float(str(figure.get("width")).removesuffix("pt")) / 72 for figure in page.figures().values()]
    wide = [attrs.get("class") == "wide" for tag, attrs in page.tags if tag == "picture"]
    assert wide == [width > 7 for width in widths] and True in wide
    assert ".wide{overflow-x:auto}" in html and ".scroll{overflow-x:auto" in html


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


def test_page_tells_accuracy_by_shots(tmp_path: Path) -> None:
    page = Page(write_report(ReportData("t", by_shots()), tmp_path / "r.html").read_text(encoding="utf-8"))
    text = " ".join(page.text)
    assert "Accuracy by training images per class" in text
    assert "many: more than 100 training images (35 classes, 7,000 test images)" in text
    assert "medium: 20 to 100 training images (64 classes, 3,000 test images)" in text


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


def test_the_report_of_a_training_is_titled_so(tmp_path: Path) -> None:
    figures = {"top1": 90.0, "multiply_adds": 5, "latency_ms": 1.0}
    student = {
        "name": "cifar/resnet20",
        "parameters": 3,
        "readouts": {"linear": figures},
        "readout": "linear",
    }
    alone = {"run": {"method": "supervised"}, "teacher": None, "baselines": {}, "student": student}
    text = write_report(ReportData("x", alone), tmp_path / "alone.html").read_text(encoding="utf-8")
    assert "Training report" in text and "Distillation report" not in text
    assert "trained on labels" in text and "student alone" not in text and "Network, top-1" in text
    # beside others it is what they are compared with
    beside = alone | {"baselines": {"label_smoothing": {"name": "cifar/resnet20", **figures}}}
    text = write_report(ReportData("x", beside), tmp_path / "beside.html").read_text(encoding="utf-8")
    assert "Distillation report" in text and "student alone" in text
