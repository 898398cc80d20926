"""Some of the user errors of benchmarks/bad_inputs.py, run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from mistakes import Case, Place, cases
from mistakes.images import fill

from gendd.cli import main
from gendd.errors import UserError

CASES = [case for case in cases() if case.quick]


@pytest.fixture(scope="session")
def fixed(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    images = tmp_path_factory.mktemp("images")
    for part in ("train", "test"):
        for name in ("a", "b"):
            fill(images / part / name)
    return Place(images, small_run, images, small_run)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_are_enough_and_each_is_another() -> None:
    assert len(CASES) >= 60 and len({str(case) for case in cases()}) == len(cases()) >= 400


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_mistake_costs_a_line_and_nothing_else(
    case: Case, fixed: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(fixed.out)
    made = case.make(Place(tmp_path, fixed.run, fixed.images, fixed.out))
    capsys.readouterr()
    if isinstance(made, list):
        assert main(made) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith("gendd: ")
        assert all(
            line.startswith("gendd: left out the recipe's") for line in lines[:-1] if "gendd: " in line
        )
    else:
        with pytest.raises(UserError) as caught:
            made()
        assert str(caught.value).strip() and "\n" not in str(caught.value)
    assert content(fixed.out) == before
