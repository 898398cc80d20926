"""Every recipe runs: its real networks on data of the real layout, resolution and number of classes.

Two steps of each training, evaluation and a reload. Only epochs, numbers of images and steps, and sampling
steps are reduced, and pretrained weights are replaced by random ones.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import gendd
from gendd.config import DataConfig, RunConfig, from_dict, load_config, merge, read_yaml, to_dict
from gendd.data import Data, load_data
from gendd.recipes import is_base, recipe_path, recipes
from gendd.run import execute

pytestmark = pytest.mark.usefixtures("no_downloads", "few_tests")

BATCH, STEPS = 2, 2
TESTED = 4
CLASSES = 1000
EXPERIMENTS = sorted(
    name
    for name in recipes()
    if not is_base(name) and name.split("/")[0] not in ("demo", "digits", "published")
)
EXPERIMENTS.remove("linear_probe")
# always run: residual, wide and plain networks, λ below 0.9 and this project's defaults
QUICK = {
    "cifar100/resnet56_resnet20",
    "cifar100/vgg13_mobilenetv2",
    "practical/cifar100/wrn_40_2_shufflev1",
}


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights for timm's."""
    create: Callable[..., nn.Module] = timm.create_model

    def untrained(name: str, *, pretrained: bool, **settings: Any) -> nn.Module:
        del pretrained
        return create(name, pretrained=False, **settings)

    monkeypatch.setattr(timm, "create_model", untrained)


@pytest.fixture
def few_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that are tested on the first few images."""

    def load(config: DataConfig, scored: int | None = None) -> Data:
        data = load_data(config)
        assert data.test.labels is not None
        few = torch.arange(TESTED)
        test = replace(data.test, source=data.test.images(few), labels=data.test.labels[few])
        return replace(data, test=test)

    monkeypatch.setattr("gendd.run.experiment.load_data", load)


def jpeg(number: int) -> bytes:
    """A substitute for a photograph: smooth, in colour, not square."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    content = io.BytesIO()
    coarse.resize((250, 230), Image.Resampling.BILINEAR).save(content, "JPEG")
    return content.getvalue()


@pytest.fixture(scope="session")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """CIFAR-100, the python version: three images a class to train on, one to test on."""
    root = tmp_path_factory.mktemp("cifar")
    folder = root / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 300), ("test", 100)):
        labels = [number % 100 for number in range(count)]
        content = {
            "data": rng.integers(0, 256, (count, 3 * 32 * 32), np.uint8),
            "fine_labels": labels,
            "coarse_labels": [label // 5 for label in labels],
        }
        (folder / part).write_bytes(pickle.dumps(content))
    names = [f"class{number:02}" for number in range(100)]
    meta = {"fine_label_names": names, "coarse_label_names": names[:20]}
    (folder / "meta").write_bytes(pickle.dumps(meta))
    with pytest.MonkeyPatch.context() as patch:
        # the files are not the published ones
        patch.setattr("torchvision.datasets.CIFAR100._check_integrity", lambda self: True)
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
        yield {"path": str(root)}


@pytest.fixture(scope="session")
def imagenet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand class folders below train/ and val/, an image in each, two in a tenth of train/."""
    root = tmp_path_factory.mktemp("imagenet")
    contents = [jpeg(number) for number in range(8)]
    for number in range(CLASSES):
        for part in ("train", "val"):
            folder = root / part / f"n{number:08}"
            folder.mkdir(parents=True)
            for copy in range(2 if part == "train" and number < 100 else 1):
                (folder / f"{part}_{number}_{copy}.JPEG").write_bytes(contents[(number + copy) % 8])
    return root


@pytest.fixture(scope="session")
def imagenet(imagenet_folder: Path) -> dict[str, Any]:
    """ImageNet in class folders."""
    return {"path": str(imagenet_folder)}


@pytest.fixture(scope="session")
def imagenet_lt(imagenet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """ImageNet-LT's lists, relative to ImageNet's folder: 150 to 5 training images a class."""
    root = tmp_path_factory.mktemp("imagenet-lt")
    for part in ("train", "val"):
        lines = [
            f"{path.relative_to(imagenet_folder)} {number}"
            for number in range(CLASSES)
            for path in sorted((imagenet_folder / part / f"n{number:08}").iterdir())
            for _ in range((150 if number < 10 else 50 if number < 20 else 5) if part == "train" else 1)
        ]
        (root / f"ImageNet_LT_{part}.txt").write_text("\n".join(lines) + "\n")
    return {
        "path": str(root / "ImageNet_LT_train.txt"),
        "test_path": str(root / "ImageNet_LT_val.txt"),
        "root": str(imagenet_folder),
    }


@pytest.fixture(scope="session")
def cc3m(imagenet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """CC3M's shards, images beside their captions, and ImageNet's validation images."""
    pytest.importorskip("webdataset")
    root = tmp_path_factory.mktemp("cc3m")
    for shard in range(2):
        with tarfile.open(root / f"{shard:05}.tar", "w") as tar:
            for number in range(16):
                key = f"{shard:05}{number:04}"
                for suffix, content in ((".jpg", jpeg(number)), (".txt", b"a caption"), (".json", b"{}")):
                    entry = tarfile.TarInfo(key + suffix)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return {
        "path": str(root / "{00000..00001}.tar"),
        "test_path": str(imagenet_folder / "val"),
    }


SETS = {"cifar100": "cifar", "imagenet": "imagenet", "imagenet-lt": "imagenet_lt", "cc3m": "cc3m"}


def shortened(config: RunConfig, data: dict[str, Any]) -> RunConfig:
    """The recipe's run in two steps of two images, and of the sampler."""
    values = to_dict(config)
    values["data"] |= {**data, "batch_size": BATCH, "workers": 0}
    if values["data"]["name"] == "webdataset":
        values["data"]["steps_per_epoch"] = STEPS
    else:
        values["data"] |= {"train_images": BATCH * STEPS, "in_memory": False}
    for section in ("training", "teacher_training"):
        # the warmup has to be shorter than the training
        values[section] |= {"epochs": 1, "warmup_epochs": 0.0, "loggers": ["csv"], "progress": False}
        values[section]["stage1_epochs"] = min(1, values[section]["stage1_epochs"])
    values["readout"]["steps"] = STEPS
    return from_dict(values, RunConfig)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EXPERIMENTS]
)
def test_a_recipe_runs_on_its_own_networks(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    recipe = load_config(recipe_path(name))
    kind = name.removeprefix("practical/").split("/")[0]
    config = shortened(recipe, request.getfixturevalue(SETS[kind]))
    run = execute(replace(config, out=str(tmp_path / "run")))

    classes, side = (100, 32) if kind == "cifar100" else (CLASSES, 224)
    metrics = run.metrics
    assert metrics["run"]["test_images"] == TESTED
    readouts = {"linear", "mean", "sample"} if recipe.method == "gendd" else {"linear"}
    assert set(metrics["student"]["readouts"]) == readouts
    wanted = recipe.readout.name if recipe.method == "gendd" else "linear"
    assert metrics["student"]["readout"] in (("linear", "mean") if wanted == "auto" else (wanted,))
    if kind == "imagenet-lt":
        assert set(metrics["student"]["readouts"]["linear"]["groups"]) == {"many", "medium", "few"}
    assert (run.folder / "stage1").is_dir() == (recipe.training.stage1_epochs > 0)

    student = gendd.load(run.folder)
    assert student.backbone.name == recipe.student.name
    logits = student(torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, classes)
    assert bool(torch.isfinite(logits).all())


def test_a_distilled_student_is_probed(cifar: dict[str, Any], tmp_path: Path) -> None:
    values = read_yaml(recipe_path("cifar100/resnet56_resnet20"))
    distilled = execute(replace(shortened(from_dict(values, RunConfig), cifar), out=str(tmp_path / "run")))
    merge(values, read_yaml(recipe_path("linear_probe")))
    values["student"]["weights"] = str(distilled.folder)
    probed = execute(replace(shortened(from_dict(values, RunConfig), cifar), out=str(tmp_path / "probe")))
    assert set(probed.metrics["student"]["readouts"]) == {"linear"}
    before, after = (run.student().backbone.state_dict() for run in (distilled, probed))
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed == {"net.fc.weight", "net.fc.bias"}
