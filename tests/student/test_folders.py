"""A run's folder, and which one a run may take."""

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


def test_what_no_result_depends_on_may_change_between_a_run_and_its_continuation(
    digits_run: Finished,
) -> None:
    config = Run.open(digits_run.folder).config
    for section in ("training", "teacher_training"):
        own = getattr(config, section)
        changed = replace(own, device="cuda", loggers=[], progress=True, checkpoint_every=9)
        check_folder(digits_run.folder, replace(config, **{section: changed}), False, True)
        bound = replace(config, **{section: replace(own, clip_grad_norm=9.0)})
        with pytest.raises(UserError, match=rf"but {section}\.clip_grad_norm was None and is "):
            check_folder(digits_run.folder, bound, False, True)
    data = replace(config.data, workers=1, in_memory=False)
    check_folder(digits_run.folder, replace(config, data=data), False, True)
