from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from gendd.methods import KD, GenDD, KDConfig, Method
from gendd.models import create_backbone

RANKS = 2
SHARE = 6
METHODS = ("gendd", "kd", "kl")

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="torch comes without gloo"
)


def build(name: str, seed: int = 0) -> Method:
    """A method whose student starts from ``seed``; the teacher is the same on every process."""
    torch.manual_seed(9)
    teacher = create_backbone("cifar/resnet8x0.5", 4, in_channels=1)
    torch.manual_seed(seed)
    student = create_backbone("cifar/resnet8x0.25", 4, in_channels=1)
    if name != "gendd":
        return KD(student, teacher, KDConfig(1.0, 1.0) if name == "kl" else KDConfig())
    settings: dict[str, Any] = {"token_width": 16, "head_width": 16, "head_depth": 1, "repeats": 2}
    method = GenDD(
        student, teacher, **settings, mixup=1.0, learned_variance=True, zero_init=False, centres="means"
    )
    method.prepare([(share(0)[0], share(0)[1]), (share(1)[0], share(1)[1])])
    return method


def share(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(50 + rank)
    return torch.rand(SHARE, 1, 8, 8, generator=generator), torch.arange(SHARE) % 4


def draws(rank: int) -> torch.Generator:
    return torch.Generator().manual_seed(70 + rank)


def gradients(method: Method) -> dict[str, Tensor]:
    found = {}
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return found


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    found: dict[str, Any] = {}
    for name in METHODS:
        method = build(name, seed=rank)
        parallel = DistributedDataParallel(method)
        images, labels = share(rank)
        # eval mode: BatchNorm of a joint batch differs from that of its parts
        parallel.eval()
        parallel(images, labels, generator=draws(rank)).loss.backward()
        grads = gradients(method)
        parallel.train()
        optimiser = torch.optim.AdamW(method.parameters(), lr=1e-2)
        generator = draws(rank)
        for _ in range(3):
            optimiser.zero_grad()
            parallel(images, labels, generator=generator).loss.backward()
            optimiser.step()
        parameters = {key: value.detach().clone() for key, value in method.named_parameters()}
        found[name] = {"gradients": grads, "parameters": parameters, "keys": list(parallel.state_dict())}
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What every process found, by method."""
    folder = tmp_path_factory.mktemp("ddp")
    multiprocessing.start_processes(worker, (str(folder),), nprocs=RANKS, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("name", ["kd", "kl"])
def test_gradients_are_those_of_the_joint_batch(name: str, ranks: list[dict[str, Any]]) -> None:
    method = build(name).eval()
    images, labels = (torch.cat(parts) for parts in zip(*map(share, range(RANKS)), strict=True))
    method(images, labels).loss.backward()
    check(gradients(method), name, ranks)


def test_gendd_gradients_are_the_mean_over_each_process_own_draws(ranks: list[dict[str, Any]]) -> None:
    method = build("gendd").eval()
    losses = [method(*share(rank), generator=draws(rank)).loss for rank in range(RANKS)]
    torch.stack(losses).mean().backward()
    check(gradients(method), "gendd", ranks)


def check(wanted: dict[str, Tensor], name: str, ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        came = found[name]["gradients"]
        assert came.keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(came[key], value, rtol=1e-4, atol=1e-6)
    assert max(float(value.abs().max()) for value in wanted.values()) > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_parameters_stay_the_same_on_every_process(name: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (found[name]["parameters"] for found in ranks)
    start = dict(build(name).named_parameters())
    moved = 0
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        moved += int(not torch.equal(value, start[key]))
    assert moved == len(first)


@pytest.mark.parametrize("name", METHODS)
def test_no_teacher_is_wrapped(name: str, ranks: list[dict[str, Any]]) -> None:
    assert ranks[0][name]["keys"] == [f"module.{key}" for key in build(name).state_dict()]
