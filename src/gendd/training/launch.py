"""Processes for distributed training: those started by torchrun, srun or PyTorchJob, else started here."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from torch import distributed

from gendd.config import TrainingConfig
from gendd.errors import UserError
from gendd.messages import say
from gendd.processes import any_of, by_slurm, launched_rank, launched_size, rank, world_size

# timeout of collective operations
_PATIENCE = timedelta(minutes=30)
# how often torchrun has started the first process, if this is it
_starts = 0


class Joined(ClusterEnvironment):
    """Lightning's environment for the processes connected by :func:`join`."""

    creates_processes_externally = True
    main_address, main_port = "", 0

    @staticmethod
    def detect() -> bool:
        """Whether there are several processes."""
        return world_size() > 1

    def world_size(self) -> int:
        """Number of processes."""
        return world_size()

    def set_world_size(self, size: int) -> None:
        """Do nothing: the size is known."""

    def global_rank(self) -> int:
        """Rank of this process."""
        return rank()

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: the rank is known."""

    def local_rank(self) -> int:
        """Rank of this process on its machine."""
        return _local_rank()

    def node_rank(self) -> int:
        """Rank of this machine."""
        return rank() // local_world_size()


def local_world_size() -> int:
    """Number of processes on this machine."""
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    if "SLURM_NNODES" in os.environ and by_slurm():
        return max(1, world_size() // int(os.environ["SLURM_NNODES"]))
    return 1 if world_size() > 1 else world_size()


def join(config: TrainingConfig, device: torch.device) -> None:
    """Connect this process to the others of the training, and start those if nothing else has.

    They stay connected until the program ends; all of them run the rest of the program.

    Raises:
        UserError: ``training.devices`` does not match the started processes or the available devices.
    """
    _watch_parent()
    launched = launched_size()
    wanted = 1 if config.devices == "auto" else config.devices
    count = len(wanted) if isinstance(wanted, list) else wanted
    if isinstance(wanted, list) and device.type != "cuda":
        raise UserError(
            f"training.devices: expected a number of processes on {device.type}, got {wanted}; a list names "
            "CUDA devices."
        )
    if launched == 1 and count == 1:
        if isinstance(wanted, list):
            torch.cuda.set_device(_cuda_device(wanted[0]))
        return
    if device.type not in ("cpu", "cuda"):
        raise UserError(
            f"training.devices: expected 1 on {device.type}, got {count}; several train together on cpu or "
            "cuda."
        )
    if config.sync_batchnorm and device.type != "cuda":
        raise UserError("training.sync_batchnorm: expected false on a CPU, got true; it needs CUDA.")
    if not distributed.is_initialized():
        if launched == 1:
            _check_startable(count)
            if device.type == "cuda":
                indices = wanted if isinstance(wanted, list) else range(count)
                for index in indices:
                    _cuda_device(index)
            _start(count)
        _initialise(device, wanted)
    local = local_world_size()
    if config.devices != "auto" and count != local:
        raise UserError(
            f"training.devices: expected the {local} processes that were started on this machine, got "
            f"{count}; leave it at 'auto'."
        )


def restarted() -> bool:
    """Whether torchrun has restarted the processes, after a failure or when a machine joined or left.

    The same in all processes once they are connected; torchrun reports it only where the failure was.
    """
    return any_of(_starts > 1 or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0)


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def _cuda_device(index: int) -> int:
    if index >= torch.cuda.device_count():
        raise UserError(
            f"training.devices: expected CUDA devices of this machine, which has "
            f"{torch.cuda.device_count()}, got device {index}; lower it."
        )
    return index


def _initialise(device: torch.device, wanted: int | list[int]) -> None:
    """Initialise the process group."""
    if by_slurm() and "MASTER_ADDR" not in os.environ:
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        slurm = SLURMEnvironment(auto_requeue=False)
        os.environ |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": str(slurm.main_port)}
    backend = "gloo"
    if device.type == "cuda":
        # collective operations on the CPU don't synchronise with the device
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(
            _cuda_device(wanted[_local_rank()] if isinstance(wanted, list) else _local_rank())
        )
    try:
        distributed.init_process_group(
            backend, store=_store(), rank=launched_rank(), world_size=launched_size(), timeout=_PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"Process {launched_rank()} of {launched_size()} did not meet the others at {place} "
            f"({' '.join(str(error).split())[:200]}); is that address right, "
            "and were all of them started?"
        ) from error
    atexit.register(_leave)


def _store() -> Any:
    """Store through which the processes find each other; None: torch's default.

    The store of torchrun's agents survives a restart, and with it the addresses of processes that are gone.
    In that case the first process opens a new store, and the others retry until they find one that responds.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    global _starts
    host, key = os.environ["MASTER_ADDR"], "gendd/port"
    make: Any = distributed.TCPStore  # type: ignore[attr-defined]
    agents = make(host, int(os.environ["MASTER_PORT"]), timeout=_PATIENCE)
    if launched_rank() == 0:
        own = make(host, 0, is_master=True, wait_for_workers=False, timeout=_PATIENCE)
        agents.set(key, str(own.port))
        _starts = agents.add("gendd/starts", 1)
        return own
    end = time.monotonic() + _PATIENCE.total_seconds()
    while True:
        port = int(agents.get(key))
        try:
            # torch would print a stack trace if nothing responds
            socket.create_connection((host, port), 5).close()
            return make(host, port, timeout=_PATIENCE)
        except OSError:
            if time.monotonic() > end:
                raise RuntimeError("the first process doesn't answer") from None
            time.sleep(0.2)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _check_startable(count: int) -> None:
    main = sys.modules["__main__"]
    if not hasattr(main, "__file__") or "pytest" in sys.argv[0]:
        raise UserError(
            f"training.devices: expected 1 in a notebook or interpreter, got {count}: the other processes "
            "run the same program, which must be a file or gendd; or start it with torchrun."
        )


def _start(count: int) -> None:
    """Start this program again for each of the other processes on this machine."""
    main = sys.modules["__main__"]
    program = [os.path.abspath(sys.argv[0])] if main.__spec__ is None else ["-m", main.__spec__.name]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "RANK": "0",
        "LOCAL_RANK": "0",
    }
    # as torchrun does, as otherwise every process uses all cores
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, torch.get_num_threads() // count)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    others = [
        subprocess.Popen(
            [sys.executable, *program, *sys.argv[1:]],
            env=os.environ | {"RANK": str(number), "LOCAL_RANK": str(number), _PARENT: str(os.getpid())},
        )
        for number in range(1, count)
    ]
    threading.Thread(target=_watch, args=(others,), daemon=True).start()
    atexit.register(_wait, others)


# environment variable with the id of the process that started this one
_PARENT = "GENDD_PARENT_PROCESS"


def _watch_parent() -> None:
    """Exit when the process that started this one ends, if there is one."""
    parent = os.environ.pop(_PARENT, None)

    def watch() -> None:
        while os.getppid() == int(parent or 0):
            time.sleep(1)
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


def _watch(others: list[subprocess.Popen[Any]]) -> None:
    """End all processes if one of them fails."""
    while True:
        codes = [each.poll() for each in others]
        failed = next((code for code in codes if code), None)
        if failed is not None:
            # this process usually notices by itself, in the collective operation it is waiting for
            time.sleep(5)
            say("gendd: a process of this training ended before the others; the last checkpoint is kept.")
            for each in others:
                each.kill()
            os._exit(2 if failed == 2 else 1)
        if all(code == 0 for code in codes):
            return
        time.sleep(0.5)


def _wait(others: list[subprocess.Popen[Any]]) -> None:
    for each in others:
        try:
            each.wait(10)
        except subprocess.TimeoutExpired:
            each.kill()
