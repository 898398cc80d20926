"""What a report shows of a run besides its metrics."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import Finished

import gendd
from gendd.run import Run
from gendd.run.exhibits import curves, examples


def test_the_curves_of_an_interrupted_run_join(tmp_path: Path) -> None:
    for version, text in {
        0: "epoch,step,train/loss,val/mean\n0,5,3.0,\n0,5,,0.5\n1,11,2.0,\n1,17,9.0,\n",
        1: "epoch,step,train/loss,val/mean\n1,11,1.5,\n1,11,,0.75\n",
        # the tenth comes after the second
        10: "epoch,step,train/loss,val/mean\n2,17,1.0,\n",
    }.items():
        (tmp_path / "logs" / f"version_{version}").mkdir(parents=True)
        (tmp_path / "logs" / f"version_{version}" / "metrics.csv").write_text(text)
    assert curves(tmp_path) == [
        {"epoch": 0, "step": 5, "train/loss": 3.0, "val/mean": 0.5, "val/top1": 50.0},
        {"epoch": 1, "step": 11, "train/loss": 1.5, "val/mean": 0.75, "val/top1": 75.0},
        {"epoch": 2, "step": 17, "train/loss": 1.0},
    ]


def test_val_top1_of_a_curve_is_of_the_readout_in_use(tmp_path: Path) -> None:
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    file = tmp_path / "logs" / "version_0" / "metrics.csv"
    file.write_text("step,val/linear,val/mean\n5,0.25,0.5\n")
    assert [row["val/top1"] for row in curves(tmp_path)] == [50.0]
    assert [row["val/top1"] for row in curves(tmp_path, "linear")] == [25.0]
    # agreement is not accuracy
    file.write_text("step,val/agreement\n5,0.75\n")
    assert curves(tmp_path) == [{"step": 5.0, "val/agreement": 75.0}]


def test_examples_do_not_depend_on_the_global_generator(digits_run: Finished) -> None:
    from gendd.data import load_data

    student = gendd.load(digits_run.folder)
    student.readout = "sample"
    data = load_data(Run.open(digits_run.folder).config.data)

    def confidences(seed: int) -> list[float]:
        torch.manual_seed(torch.initial_seed() + 1)
        return [shown.confidence for shown in examples(student, data, torch.device("cpu"), seed)]

    assert confidences(3) == confidences(3)
    assert confidences(3) != confidences(4)


def test_a_log_that_was_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "version_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    whole = "lr,step,train/loss_step\r\n0.5,3,1.25\r\n0.25,17,0.75\r\n"
    for length in range(len(whole) + 1):
        log.write_bytes(whole[:length].encode())
        rows = [{"lr": 0.5, "step": 3, "train/loss": 1.25}, {"lr": 0.25, "step": 17, "train/loss": 0.75}]
        assert curves(tmp_path) == rows[: max(0, whole[:length].count("\r") - 1)]
