"""Classify image files with a saved student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Finished

import gendd
from gendd.deploy.predict import predict


def test_what_is_sampled_does_not_depend_on_the_global_generator(
    digits_run: Finished, digit_files: Callable[[int], list[str]], tmp_path: Path
) -> None:
    student = gendd.load(digits_run.folder)
    student.readout = "sample"
    student.save(tmp_path / "sampling")
    files = digit_files(2)
    first = predict(tmp_path / "sampling", files, top=10)
    torch.manual_seed(torch.initial_seed() + 1)
    assert predict(tmp_path / "sampling", files, top=10) == first
    assert predict(tmp_path / "sampling", files[1:], top=10) == first[1:]


def test_probabilities_and_uncertainty_are_told_in_full(
    digits_run: Finished, digit_files: Callable[[int], list[str]]
) -> None:
    (said,) = predict(digits_run.folder, digit_files(1), top=10, uncertainty=4)
    assert sum(said.probabilities) == pytest.approx(1, abs=1e-6)
    assert said.uncertainty is not None
    parts = said.uncertainty["total"] - said.uncertainty["aleatoric"]
    assert said.uncertainty["mutual_information"] == pytest.approx(parts, abs=1e-6)
