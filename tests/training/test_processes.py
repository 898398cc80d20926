"""Several processes train like one, and are distinguished from several trainings."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from sharing import METHODS, STEPS, command, find
from started import PATIENCE, Started, run_gendd, together
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher import LaunchConfig, elastic_launch

from gendd.cli import main
from gendd.config import TrainingConfig
from gendd.errors import UserError
from gendd.processes import any_of, first_then_all, from_first, in_turn, rank, share, total, world_size
from gendd.training import join
from gendd.training.resuming import convert

gloo = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="torch comes without gloo"
)
CASES = [(method, "ddp") for method in METHODS] + [(method, "fsdp") for method in METHODS[:3]]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_shares_are_disjoint_complete_and_closed_under_reversal(world: int, size: int) -> None:
    parts = [share(world * size, rank, world) for rank in range(world)]
    assert sorted(torch.cat(parts).tolist()) == list(range(world * size))
    for part in parts:
        assert part.tolist() == sorted(part.tolist()) and len(part) == size
        mirrored = sorted((world * size - 1 - part).tolist())
        if size % 2 == 0 or world == 1:
            assert mirrored == part.tolist()


def test_one_process_needs_nobody() -> None:
    rows = [torch.arange(3), torch.arange(2)]
    assert (rank(), world_size(), any_of(True), any_of(False)) == (0, 1, True, False)
    assert from_first(lambda: 3) == first_then_all(lambda: 3) == 3
    assert in_turn(rows) is rows and total(rows[0]) is rows[0]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The results of one process and of two, by strategy and method."""
    folder = tmp_path_factory.mktemp("shared")
    two = [
        Started(folder / str(rank), find, folder, 32, "ddp", "fsdp", env=env)
        for rank, env in enumerate(together(2))
    ]
    for process in (*two, Started(folder / "alone", find, folder / "alone", 64, "ddp")):
        code, said = process.ended()
        assert code == 0, said[-2000:]
    files = {"alone": "alone/ddp.pt", "ddp": "ddp.pt", "fsdp": "fsdp.pt"}
    return {name: torch.load(folder / file, weights_only=False) for name, file in files.items()}


@gloo
@pytest.mark.parametrize(("method", "strategy"), CASES)
def test_gradients_are_those_of_one_process(
    method: str, strategy: str, shared: dict[str, dict[str, Any]]
) -> None:
    alone, both = (shared[name][method]["gradients"] for name in ("alone", strategy))
    assert len(alone) == len(both) == STEPS
    for one, two in zip(alone, both, strict=True):
        assert one.keys() == two.keys() and len(one) > 3
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6)
        assert max(float(value.abs().max()) for value in one.values()) > 1e-3


@gloo
@pytest.mark.parametrize(("method", "strategy"), CASES)
def test_scores_are_those_of_one_process(
    method: str, strategy: str, shared: dict[str, dict[str, Any]]
) -> None:
    alone, both = shared["alone"][method], shared[strategy][method]
    assert alone["best"] == both["best"]
    assert alone["scores"].keys() == both["scores"].keys()
    for name, (*figures, confusion, images) in alone["scores"].items():
        *others, other_confusion, other_images = both["scores"][name]
        assert figures == others and images == other_images == 359
        assert torch.equal(confusion, other_confusion) and int(confusion.sum()) == images
    for name, value in alone["features"].items():
        if value is not None:
            torch.testing.assert_close(both["features"][name], value, rtol=1e-4, atol=1e-5)


@gloo
@pytest.mark.parametrize("method", METHODS[:3])
def test_weights_that_are_shared_out_are_saved_whole(method: str, shared: dict[str, dict[str, Any]]) -> None:
    found = shared["fsdp"][method]
    assert found["weights"].keys() == found["resumed"].keys() == shared["ddp"][method]["weights"].keys()
    for name, value in shared["ddp"][method]["weights"].items():
        assert type(found["weights"][name]) is torch.Tensor
        torch.testing.assert_close(found["weights"][name], value, rtol=0, atol=1e-4)
        # a training interrupted within an epoch; kd's was resumed with ddp
        tolerance = 1e-5 if method == "kd" else 0
        torch.testing.assert_close(found["resumed"][name], found["weights"][name], rtol=0, atol=tolerance)


@gloo
@pytest.mark.parametrize("name", ["timm/test_vit", "cifar/resnet8"])
def test_a_sharded_teacher_says_what_the_whole_one_says(name: str, shared: dict[str, dict[str, Any]]) -> None:
    found = shared["fsdp"]["teachers"][name]
    assert 0.4 < found["share"] < 0.52
    for whole, sharded in zip(found["whole"], found["sharded"], strict=True):
        torch.testing.assert_close(sharded, whole, rtol=0, atol=1e-6)
    assert found["whole"][0].abs().max() > 0.01


SMALL = (
    *("train", "--data", "digits", "--student", "cifar/resnet8x0.25", "--data.batch_size", "32"),
    *("--training.epochs", "2", "--training.precision", "fp32", "--training.checkpoint_minutes", "1e-6"),
    "--training.loggers=[csv]",
)


def weights(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return found


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    states = first["state_dict"], second["state_dict"]
    return first["global_step"] == second["global_step"] and all(
        torch.equal(value, states[1][name]) for name, value in states[0].items()
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, started by gendd itself."""
    place = tmp_path_factory.mktemp("undisturbed")
    run = Started(place, run_gendd, *SMALL, "--training.devices", "2", "--out", place / "run")
    code, said = run.ended()
    assert code == 0, said[-2000:]
    assert "supervised: 2 processes x 32 images per step, 20 steps per epoch" in said
    # each line is printed once, and so is the table
    assert said.count("epoch 2/2") == 1 and run.out.count("trained on labels") == 1
    return place / "run"


def until(condition: Callable[[], bool], runs: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition() and runs():
        assert time.monotonic() < end
        time.sleep(0.02)


def written(file: Path) -> int:
    """When a file was written; 0 while it is being replaced."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def children(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found


@gloo
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_what_is_interrupted_within_an_epoch_ends_bit_equal(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    last = folder / "checkpoints" / "last.ckpt"
    words = (*SMALL, "--training.devices", "2", "--out", folder)

    # whatever launches them, and whichever process is asked to stop
    first, second = launched(tmp_path / "asked", *words)
    until(last.exists, second.is_alive)
    assert second.pid is not None
    os.kill(second.pid, signal.SIGUSR1)
    (code, said), (other, _) = first.ended(), second.ended()
    assert code == other == 0 and "asked to stop after" in said and "Traceback" not in said
    stopped, before = weights(folder)["global_step"], written(last)

    own = Started(tmp_path / "killed", run_gendd, *words, "--resume")
    until(lambda: written(last) > before, own.is_alive)
    assert own.pid is not None
    os.kill(children(own.pid)[0], signal.SIGKILL)
    code, said = own.ended()
    assert code == 1 and "a process of this training ended before the others" in said
    assert "Traceback" not in said and not (folder / "metrics.json").exists()
    assert 0 < stopped < weights(folder)["global_step"] < 40

    for process in launched(tmp_path / "again", *words, "--resume"):
        code, said = process.ended()
        assert code == 0, said[-2000:]
    assert same(weights(folder), weights(undisturbed))


def launched(place: Path, *words: str | Path) -> list[Started]:
    """Two processes of a command, started as a launcher does."""
    return [Started(place / str(rank), run_gendd, *words, env=env) for rank, env in enumerate(together(2))]


@gloo
def test_torchrun_starts_a_killed_process_again(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # torchrun, without its command line and without restarted programs
    torchrun = elastic_launch(
        LaunchConfig(
            *(1, 1, 2),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id="test",
            max_restarts=1,
            start_method="forkserver",
            logs_specs=DefaultLogsSpecs(str(tmp_path / "logs"), Std.ALL),
        ),
        command,
    )
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(torchrun, tmp_path, *SMALL, "--out", folder)
        until((folder / "checkpoints" / "last.ckpt").exists, lambda: not ending.done())
        os.kill(int((tmp_path / "1.pid").read_text()), signal.SIGKILL)
        ending.result(PATIENCE)
    assert same(weights(folder), weights(undisturbed))


@gloo
def test_a_run_goes_on_in_another_number_of_processes(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    more = ("--training.epochs", "3", "--training.devices", "1")
    words = [word for word in SMALL if word not in ("--training.epochs", "2")]
    assert main([*words, *more, "--out", str(folder), "--resume"]) == 0
    said = capsys.readouterr().err
    assert "going on with steps of 32 images in 1 processes, 40 per epoch (before: 64 in 2" in said
    assert weights(folder)["global_step"] == 3 * 40
    assert "epoch 3/3" in said and "epoch 2/3" not in said


@pytest.mark.parametrize(
    ("steps", "new", "expected"),
    [
        (25, {"processes": 2, "images": 128, "batches": 1, "steps": 10}, 12),
        (25, {"processes": 1, "images": 32, "batches": 1, "steps": 40}, 50),
        (25, {"processes": 1, "images": 64, "batches": 2, "steps": 20}, 25),
        (21, {"processes": 4, "images": 256, "batches": 1, "steps": 5}, 6),
        (39, {"processes": 4, "images": 256, "batches": 1, "steps": 5}, 9),
    ],
)
def test_the_place_within_an_epoch_is_converted(steps: int, new: dict[str, int], expected: int) -> None:
    old = {"processes": 1, "images": 64, "batches": 1, "steps": 20}
    checkpoint = at_step(steps, old)
    convert(checkpoint, new)
    progress = checkpoint["loops"]["fit_loop"]
    current = (expected % new["steps"]) * new["batches"]
    assert checkpoint["global_step"] == expected
    assert progress["epoch_loop.batch_progress"]["current"] == {
        "ready": current,
        "started": current,
        "processed": current,
        "completed": current - 1,
    }
    assert progress["state_dict"]["combined_loader"] == [{"epoch": steps // 20, "given": current}]
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == expected
    again = at_step(steps, old)
    convert(again, old)
    assert again == at_step(steps, old)


def at_step(steps: int, layout: dict[str, int]) -> dict[str, Any]:
    """The parts of a mid-epoch checkpoint that encode its position."""
    within = steps % layout["steps"]

    def counts(*keys: str) -> dict[str, dict[str, int]]:
        return {"total": dict.fromkeys(keys, steps), "current": dict.fromkeys(keys, within)}

    batches: dict[str, Any] = counts("ready", "started", "processed", "completed")
    batches["current"]["completed"] -= 1
    batches["total"]["completed"] -= 1
    return {
        "layout": layout,
        "global_step": steps,
        "lr_schedulers": [{"last_epoch": steps, "_step_count": steps + 1}],
        "loops": {
            "fit_loop": {
                "state_dict": {"combined_loader": [{"epoch": steps // layout["steps"], "given": within}]},
                "epoch_loop.state_dict": {"_batches_that_stepped": steps - 1},
                "epoch_loop.batch_progress": {**batches, "is_last_batch": False},
                "epoch_loop.scheduler_progress": counts("ready", "completed"),
                "epoch_loop.automatic_optimization.optim_progress": {
                    "optimizer": {
                        "step": counts("ready", "completed"),
                        "zero_grad": counts("ready", "completed", "started"),
                    }
                },
            }
        },
    }


def test_an_epoch_of_one_step_has_no_place_within() -> None:
    checkpoint = at_step(25, {"processes": 1, "images": 64, "batches": 1, "steps": 20})
    with pytest.raises(UserError, match="with which an epoch is a single step"):
        convert(checkpoint, {"processes": 20, "images": 1280, "batches": 1, "steps": 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"devices": [0, 1]}, "training.devices: expected a number of processes on cpu, got [0, 1]"),
        ({"devices": 2, "sync_batchnorm": True}, "training.sync_batchnorm: expected false on a CPU"),
        ({"devices": 2}, "training.devices: expected 1 in a notebook or interpreter, got 2"),
    ],
)
def test_what_can_not_be_started_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        join(TrainingConfig(**settings), torch.device("cpu"))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("devices", [0, -1, [], [0, 0], [-1]])
def test_devices_that_are_none(devices: Any) -> None:
    with pytest.raises(UserError, match=r"^training\.devices"):
        TrainingConfig(devices=devices)


def test_rates_follow_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from gendd.training import trainer

    monkeypatch.setattr(trainer, "world_size", lambda: 4)
    for how, factor in (("none", 1), ("linear", 4), ("sqrt", 2)):
        config = trainer._scaled(TrainingConfig(lr=0.01, min_lr=0.001, scale_lr=how))
        assert math.isclose(config.lr, 0.01 * factor) and math.isclose(config.min_lr, 0.001 * factor)
