"""Sections of the page made from predictions: verdict, tiles, calibration, hardest classes, errors."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reports import Page, answered, decode, full, judged

from gendd.report import write_report
from gendd.report.numbers import megabytes
from gendd.report.sections.mistakes import least_right
from gendd.report.sections.reliability import by_confidence, reliability


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(judged(), tmp_path_factory.mktemp("run") / "report.html").read_text(encoding="utf-8")


def section(html: str, title: str) -> str:
    (found,) = re.findall(rf"<section[^>]*><h2>{title}</h2>.*?</section>", html, re.DOTALL)
    return str(found)


def test_what_to_do_next_is_at_the_top_as_commands(html: str) -> None:
    told = section(html, "Use the student")
    assert re.findall(r"<code>(.*?)</code>", told) == [
        "gendd predict &#39;runs/a &lt;run&gt;&#39; IMAGE…",
        "gendd evaluate &#39;runs/a &lt;run&gt;&#39;",
        "gendd export &#39;runs/a &lt;run&gt;&#39; --to onnx",
    ]
    assert html.index("Use the student") < html.index("<h2>Comparison")
    assert "Use the student" not in write_of(full())


def write_of(data: object) -> str:
    from gendd.report.page import page

    return page(data)  # type: ignore[arg-type]


def test_the_verdict_is_in_words_and_tells_chance(html: str) -> None:
    (told,) = re.findall(r'<p class="verdict">(.*?)</p>', html)
    assert told == (
        "The student classifies 72.1 % of the test images correctly: 3.0 points better than the same network "
        "trained on the labels alone; not measurably different from KL distillation on these test images "
        "(+1.40); 0.2 points below its teacher, with 3.4× fewer parameters."
    )
    data = judged()
    data.metrics["gains"]["supervised"] = {"points": -3.0, "low": -4.0, "high": -2.0}
    assert "3.0 points worse than the same network" in write_of(data)
    assert 'class="verdict"' not in write_of(full())


def test_tiles_tell_size_latency_agreement_and_intervals(html: str) -> None:
    cards = {
        name: (value, detail)
        for name, value, detail in re.findall(
            r'<span class="name">(.*?)</span><b>(.*?)</b><span>(.*?)</span>', html
        )
    }
    assert cards["Size"] == ("1.00 MB <small></small>", "teacher 3.42 MB, in 32-bit precision")
    assert cards["Latency"] == (
        "1.00 <small>ms</small>",
        "per image, in batches of 32 on cpu; half of the calls 0.900 to 1.20",
    )
    assert cards["Agreement"][0] == "81.50 <small>%</small>"
    assert cards["Gain over student alone"][1].endswith("69.06 %; 95 % interval +2.00 to +4.10")
    assert (megabytes(250), megabytes(2_500_000), megabytes(1e8)) == ("0.00 MB", "10.0 MB", "400 MB")


def test_answers_fall_into_bins_of_confidence() -> None:
    confidence = np.array([0.05, 0.95, 0.95, 1.0, 0.55])
    right = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    bins, told = by_confidence(confidence, right)
    np.testing.assert_allclose(bins, [[5, 0, 20], [55, 100, 20], [290 / 3, 200 / 3, 60]])
    assert told["lean"] == pytest.approx(70 - 60)
    assert told["distance"] == pytest.approx(0.2 * 5 + 0.2 * 45 + 0.6 * 30)


def test_the_page_tells_how_far_the_student_can_be_believed(html: str) -> None:
    told = section(html, "Reliability")
    assert "mean confidence is 80.0 %, and 58.3 % of its predictions" in told
    # with twelve images this may be chance
    assert "neither overconfident nor underconfident, as far as these images show" in told
    assert "Accuracy of the predictions by confidence" in Page(html).figures()
    labels = torch.arange(1200) % 3
    for share, words in (
        (7, "is overconfident: its mean"),
        (8, "as far as these images show"),
        (9, "is underconfident: its mean"),
    ):
        right = [row % 10 < share for row in range(1200)]
        assert words in reliability(answered(right, labels), "gendd")


def test_the_hardest_classes_come_with_pictures(html: str) -> None:
    told = section(html, "Hardest classes")
    assert re.findall(r"<h3>(.*?)</h3>", told) == [
        "&lt;cat&gt; <small>25.0 % right, teacher 75.0 %</small>",
        "$dog$ <small>50.0 % right, teacher 100.0 %</small>",
    ]
    shown = [
        int(np.asarray(Image.open(io.BytesIO(decode(url))))[0, 0]) // 20
        for url in re.findall(r'src="(data:image/png[^"]*)"', told)
    ]
    assert shown == [0, 3, 6, 1, 4]
    # the teacher is wrong about the first alone
    assert re.findall(r"<span>teacher: (.*?)</span>", told) == ["$dog$"]
    assert least_right(np.array([0, 0, 1, 1, 2]), np.array([1, 1, 0, 1, 0])) == [2, 1]


def test_mistakes_are_counted_beside_the_teachers(html: str) -> None:
    told = section(html, "Mistakes beside the teacher&#39;s")
    rows = re.findall(r'<td>(.*?)</td><td class="n">(.*?)</td>', told)
    assert rows == [
        ("Both right", "6"),
        ("Only the teacher right", "4"),
        ("Only the student right", "1"),
        ("Both wrong, with the same class", "1"),
        ("Both wrong, with different classes", "0"),
    ]
    assert told.count("<figure") == 4


def test_without_pictures_or_labels_less_is_shown(tmp_path: Path) -> None:
    data = judged()
    data.picture = None
    html = write_of(data)
    assert "<figure" not in section(html, "Hardest classes") + section(
        html, "Mistakes beside the teacher&#39;s"
    )
    unknown = torch.arange(12) % 3
    data.answers = {"gendd": answered([True] * 12, unknown)}
    html = write_of(data)
    assert "Hardest classes" not in html and "Mistakes beside" not in html and "Reliability" in html
