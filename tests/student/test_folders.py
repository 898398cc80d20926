"""Run folders, and which folder a run may use."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Finished

from gendd.errors import UserError
from gendd.run import Run
from gendd.run.output import check_folder


def test_run_open_wants_a_finished_run(digits_run: Finished, tmp_path: Path) -> None:
    assert Run.open(str(digits_run.folder)).report.read_text().startswith("<!doctype html>")
    with pytest.raises(UserError, match=re.escape(f"No run at {str(tmp_path)!r}: expected a folder with")):
        Run.open(tmp_path)
    shutil.copy(digits_run.folder / "config.yaml", tmp_path)
    with pytest.raises(
        UserError, match=r"has not finished: expected metrics\.json\. Continue it with --resu"
    ):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        *(
            "",
            "{",
            "[" * 5000,
            "[1]",
            "5",
            "null",
            "{}",
            '{"run": {}}',
            '{"run": 5, "student": {"readouts": {}}}',
        ),
        *('{"run": {}, "student": 5}', '{"run": {}, "student": {"readouts": 5}}'),
        '{"run": {}, "student": {"readouts": {"linear": 5}}}',
        '{"run": {}, "student": {"readouts": {}}, "teacher": 5}',
    ],
)
def test_figures_that_are_none_are_told_before_anything_is_computed(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "metrics.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.json': expected .*; restore it\.$") as caught:
        Run.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_no_result_depends_on_may_change_between_a_run_and_its_continuation(
    digits_run: Finished,
) -> None:
    config = Run.open(digits_run.folder).config
    for section in ("training", "teacher_training"):
        own = getattr(config, section)
        changed = replace(own, device="cuda", loggers=[], progress=True, checkpoint_every=9)
        check_folder(digits_run.folder, replace(config, **{section: changed}), False, True)
        bound = replace(config, **{section: replace(own, momentum=0.5)})
        with pytest.raises(UserError, match=rf"but {section}\.momentum was 0.9 and is 0.5"):
            check_folder(digits_run.folder, bound, False, True)
    data = replace(config.data, workers=1, in_memory=False)
    check_folder(digits_run.folder, replace(config, data=data), False, True)
