"""Runs in one and in two processes: their speed side by side, and what is lost when a process is killed.

`kill`: one of two processes, or the only one, of a small run with a checkpoint after every step is killed at
a random moment of its training, and the run is resumed as a user would. `restart`: two torchrun agents, "two
nodes" on this machine; one loses its process, and they restart all of them. With `--namespaces` (root, Linux)
each agent has a network of its own, connected by a virtual cable. Both pass if the run ends
bit-identical to an undisturbed one: weights, metrics except times, logged curves. `speed`: images per second
of a training in one process, in two that share its batch, and of two independent trainings at once, in turns,
one thread per process; `small`: ResNet-56 to ResNet-20 at 32 pixels; `large batch`: the same in steps of
1,024 images of Fashion-MNIST; `wide`: ResNet-50 to ResNet-18 at 224.

    python benchmarks/processes.py kill --count 4
    python benchmarks/processes.py restart --count 3 --namespaces
    python benchmarks/processes.py speed --case wide --repeats 5
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import records
from disturbed import DATA, RUN, images, outcome

RESULTS = Path(__file__).parent / "results"
FIELDS = ["kind", "data", "processes", "case", "after_s", "step", "code", "lost"]
SPEED_RESULTS = RESULTS / "processes_speed.csv"
SPEED = ["case", "repeat", "method", "arm", "images_per_s"]
# the batch size is the total over all processes
CASES: dict[str, dict[str, Any]] = {
    "small": {
        "teacher": "cifar/resnet56",
        "student": "cifar/resnet20",
        "data.image_size": 32,
        "data.batch_size": 128,
        "data.train_images": 1280,
        "training.epochs": 3,
    },
    "large batch": {
        "teacher": "cifar/resnet56",
        "student": "cifar/resnet20",
        "data.name": "fashion-mnist",
        "data.image_size": 32,
        "data.batch_size": 1024,
        "data.train_images": 2048,
        "training.epochs": 3,
    },
    "wide": {
        "teacher": "timm/resnet50",
        "student": "timm/resnet18",
        "data.image_size": 224,
        "data.batch_size": 16,
        "data.train_images": 64,
        "training.epochs": 3,
    },
}
ARMS = {
    "one process": {"processes": 1},
    "two processes": {"processes": 2},
    "two trainings": {"at_once": 2},
}
# seconds after which a process is considered hung, even on a slow machine
PATIENCE = 900
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def words(folder: Path, options: list[str], processes: int, resume: bool = False) -> list[str]:
    """Return the arguments of the small run."""
    own = {**RUN, "training.checkpoint_minutes": 1e-6, "data.batch_size": 32 // processes}
    return [
        "distill",
        f"--out={folder}",
        *(f"--{name}={value}" for name, value in own.items()),
        *options,
        *(["--resume"] if resume else []),
    ]


def start(
    arguments: list[str], cache: Path, launcher: Sequence[str] = (), inside: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start a gendd process that leads its own process group, ``inside`` another command."""
    return subprocess.Popen(
        [*inside, sys.executable, *launcher, "-m", "gendd", *arguments],
        env=os.environ | ENVIRONMENT | {"GENDD_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return a process's exit code and output."""
    try:
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


def group(leader: int) -> list[int]:
    """Return the Python processes of a group that run gendd, without loader processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            names = (folder / "environ").read_bytes()
            parent = int(fields[1])
        except OSError:
            continue
        if int(fields[2]) == leader and b"RANK=" in names:
            found.append((int(folder.name), parent))
    numbers = {number for number, _ in found}
    # loader processes are children of a training process and have no children
    mothers = [number for number, parent in found if parent not in numbers or parent == leader]
    return sorted(mothers)


def children(parent: int) -> list[int]:
    """Return the child processes of a process."""
    found = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(number) for number in found.read_text().split()] if found.exists() else []


def await_steps(folder: Path, count: int, running: list[subprocess.Popen[str]]) -> None:
    """Wait until this many checkpoints of any of the run's trainings have been written."""
    seen: set[tuple[str, int]] = set()
    while len(seen) < count and all(process.poll() is None for process in running):
        for path in folder.rglob("last.ckpt"):
            try:
                seen.add((str(path), path.stat().st_mtime_ns))
            except OSError:
                continue
        time.sleep(0.002)


def lost(whole: dict[str, Any], folder: Path) -> list[str]:
    """Return what differs in a finished run."""
    try:
        end = outcome(folder)
    except Exception as error:
        return [f"can't be read: {error!r}"]
    return [name for name in {**whole, **end} if whole.get(name) != end.get(name)]


def undisturbed(folder: Path, options: list[str], processes: int, cache: Path) -> dict[str, Any]:
    """Return the outcome of an undisturbed run."""
    code, said = ended(start(words(folder / "run", options, processes), cache))
    if code:
        sys.exit(said)
    return outcome(folder / "run")


def step_of(folder: Path) -> str:
    """Return the step of the student's last checkpoint."""
    import torch

    path = folder / "checkpoints" / "last.ckpt"
    try:
        return str(torch.load(path, weights_only=True)["global_step"]) if path.exists() else "0"
    except (OSError, RuntimeError):
        return "?"


def kill(count: int, seed: int) -> None:
    """Kill and resume: ``count`` cases for each kind of data and number of processes."""
    for kind in DATA:
        with tempfile.TemporaryDirectory() as root:
            base = Path(root)
            own = images(kind, base / "images")
            for processes in (1, 2):
                options = [*own, f"--training.devices={processes}"]
                cache = base / f"cache{processes}"
                whole = undisturbed(base / f"whole{processes}", options, processes, cache)
                for case in range(count):
                    pace = random.Random(f"{seed}/{kind}/{processes}/{case}")
                    folder = base / f"case{processes}-{case}" / "run"
                    process = start(words(folder, options, processes), cache)
                    began = time.monotonic()
                    await_steps(folder, pace.randrange(1, 40), [process])
                    time.sleep(pace.uniform(0, 0.05))
                    members = group(process.pid) if processes > 1 else [process.pid]
                    victim = pace.choice(members or [process.pid])
                    after = time.monotonic() - began
                    os.kill(victim, signal.SIGKILL)
                    code, _ = ended(process)
                    step = step_of(folder)
                    again, said = ended(start(words(folder, options, processes, resume=True), cache))
                    wrong = [f"resumed: {said.splitlines()[-1]}"] if again else lost(whole, folder)
                    note("kill", kind, processes, f"{seed}-{case}", after, step, code, wrong)
                    shutil.rmtree(folder)


@contextlib.contextmanager
def nodes(namespaces: bool) -> Iterator[list[tuple[str, list[str]]]]:
    """Yield address and command prefix of two nodes; with ``namespaces`` each has its own network."""
    if not namespaces:
        yield [("127.0.0.1", []), ("127.0.0.1", [])]
        return

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    names, addresses = ["gendd-node0", "gendd-node1"], ["10.77.0.1", "10.77.0.2"]
    made: list[str] = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "cable", "netns", names[1])
        for name, address in zip(names, addresses, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        network = ["env", "GLOO_SOCKET_IFNAME=cable"]
        yield [
            (address, ["ip", "netns", "exec", name, *network])
            for name, address in zip(names, addresses, strict=True)
        ]
    finally:
        for name in made:
            ip("netns", "delete", name)


def restart(count: int, seed: int, namespaces: bool) -> None:
    """Run two torchrun agents, one of which loses its process."""
    with tempfile.TemporaryDirectory() as root, nodes(namespaces) as machines:
        base = Path(root)
        options = images("digits", base / "images")
        cache = base / "cache"
        whole = undisturbed(base / "whole", [*options, "--training.devices=2"], 2, cache)
        for case in range(count):
            pace = random.Random(f"{seed}/restart/{case}")
            folder = base / f"case-{case}" / "run"
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            agents = [
                start(
                    words(folder, options, 2),
                    cache,
                    [
                        *("-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
                        *(f"--node-rank={node}", "--max-restarts=3", f"--rdzv-id=case-{case}"),
                        *("--rdzv-backend=c10d", f"--rdzv-endpoint={machines[0][0]}:{port}"),
                        *(f"--rdzv-conf=is_host={node == 0}", f"--local-addr={address}"),
                    ],
                    inside,
                )
                for node, (address, inside) in enumerate(machines)
            ]
            began = time.monotonic()
            await_steps(folder, pace.randrange(1, 40), agents)
            # torchrun gives each process its own process group
            members = [number for agent in agents for number in children(agent.pid)]
            after = time.monotonic() - began
            if members:
                os.kill(pace.choice(members), signal.SIGKILL)
            ends = [ended(agent) for agent in agents]
            codes = [code for code, _ in ends]
            for code, said in ends:
                if code or not members:
                    print(said)
            wrong = [f"exit codes {codes}"] if any(codes) or not members else lost(whole, folder)
            kind = "restart, namespaces" if namespaces else "restart"
            note(kind, "digits", 2, f"{seed}-{case}", after, "", codes[0], wrong)
            shutil.rmtree(folder)


def note(
    kind: str, data: str, processes: int, case: str, after: float, step: str, code: int, wrong: list[str]
) -> None:
    """Add a case to the results."""
    row = dict(zip(FIELDS, (kind, data, processes, case, f"{after:.1f}", step, code), strict=False))
    row["lost"] = "; ".join(wrong)
    records.append(RESULTS / "processes.csv", FIELDS, [row])
    print(*row.values(), flush=True)


def speed(case: str, repeats: int, arms: list[str]) -> None:
    """Measure images per second of one training in one process and in two, and of two at once, in turns."""
    rates: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        options = CASES[case] | common(case, Path(root))
        for repeat in range(repeats):
            for method in ("kd", "gendd"):
                for arm in arms:
                    rate = trained(Path(root), options, method, **ARMS[arm])
                    rates.setdefault((method, arm), []).append(rate)
                    row = (case, repeat, method, arm, f"{rate:.4g}")
                    records.append(SPEED_RESULTS, SPEED, [dict(zip(SPEED, row, strict=True))])
                    print(*row, flush=True)
    for (method, arm), values in rates.items():
        for other in arms:
            if other != arm:
                ratios = [one / two for one, two in zip(values, rates[method, other], strict=True)]
                print(f"{method}: {arm} / {other}: {statistics.median(ratios):.2f}")


def common(case: str, root: Path) -> dict[str, Any]:
    """Return the options of all arms; a teacher that would take long to train has random weights."""
    options: dict[str, Any] = {
        "baselines": "[]",
        "data.validation_images": 32,
        "training.loggers": "[csv]",
        "training.precision": "fp32",
        "teacher_training.epochs": 1,
        "evaluation.images": 32,
        "readout.name": "linear",
    }
    if case == "wide":
        from gendd.models import create_backbone, save_weights

        path = root / "teacher.safetensors"
        save_weights(create_backbone(CASES[case]["teacher"], 10, in_channels=1), path)
        options["teacher.weights"] = path
    return options


def trained(root: Path, given: dict[str, Any], method: str, processes: int = 1, at_once: int = 1) -> float:
    """Return images per second of the epochs after the first, summed over simultaneous trainings."""
    batch = given["data.batch_size"]

    def begun(number: int) -> subprocess.Popen[str]:
        options = given | {
            "method": method,
            "out": root / f"run{number}",
            "data.batch_size": batch // processes // at_once,
            "training.devices": processes,
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        return start(["distill", "--overwrite", *words], root / f"cache{number}")

    found = 0.0
    for number, (code, said) in enumerate([ended(each) for each in [begun(each) for each in range(at_once)]]):
        if code:
            sys.exit(said)
        (log,) = (root / f"run{number}" / "logs").rglob("metrics.csv")
        with log.open() as file:
            rates = {row["epoch"]: float(row["images/s"]) for row in csv.DictReader(file) if row["images/s"]}
        found += statistics.mean([rate for epoch, rate in rates.items() if epoch != "0"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["kill", "restart", "speed"])
    parser.add_argument("--count", type=int, default=4, help="cases of each kind")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--case", choices=[*CASES], default="small")
    parser.add_argument("--arms", choices=[*ARMS], nargs="+", default=[*ARMS])
    parser.add_argument("--namespaces", action="store_true", help="restart: a network per agent")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.what == "kill":
        kill(given.count, given.seed)
    elif given.what == "restart":
        restart(given.count, given.seed, given.namespaces)
    else:
        speed(given.case, given.repeats, given.arms)


if __name__ == "__main__":
    main()
