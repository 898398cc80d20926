from __future__ import annotations

import pytest

from gendd.report.numbers import count, duration, ratio


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
    assert count(value) == text


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
    assert duration(seconds) == text


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
    assert ratio(large, small) == expected
