from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gendd
from gendd.cli import main
from gendd.config import DataConfig
from gendd.data import load_data
from gendd.data.readers import Reader, reader, readers
from gendd.errors import UserError

OWN = """
import torch
from gendd.data.readers import Found, Part, Reader

def read(config):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    pixels = torch.randint(0, 80, (120, 1, 16, 16), dtype=torch.uint8, generator=generator)
    for index, label in enumerate(labels.tolist()):
        pixels[index, :, 5 * label : 5 * label + 5] += 150
    part = Part(120, labels, lambda rows: pixels[rows])
    return Found(part, part, ["top", "middle", "bottom"])

BARS = Reader(read, mirrored=False)
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "own.py"
    file.write_text(OWN, encoding="utf-8")
    return file


def test_a_set_of_one_s_own_is_one_file(own: Path, tmp_path: Path) -> None:
    data = load_data(DataConfig(f"{own}:BARS"))
    assert (data.class_names, data.augment, data.image_size) == (["top", "middle", "bottom"], "crop", 16)
    plain = load_data(DataConfig(f"{own}:read"))
    assert plain.augment == "crop-flip" and torch.equal(plain.test.images([0]), data.test.images([0]))
    words = [
        "train",
        "--data",
        f"{own}:BARS",
        "--student",
        "cifar/resnet8x0.25",
        "--out",
        str(tmp_path / "run"),
    ]
    options = ["--training.epochs=4", "--training.lr=0.02", "--training.progress=false"]
    assert main([*words, *options]) == 0
    top1 = gendd.Run.open(tmp_path / "run").metrics["student"]["readouts"]["linear"]["top1"]
    assert top1 > 60  # by chance 33.3


def test_what_is_no_reader_is_said(own: Path) -> None:
    with pytest.raises(UserError, match=r"expected a reader 'BRAS' in .*own\.py\. Did you mean 'BARS'\?"):
        reader(f"{own}:BRAS")
    with pytest.raises(UserError, match=r"expected one of .*, webdataset, or path/to/file\.py:NAME, got 'x'"):
        reader("x")


def test_every_reader_names_its_sets() -> None:
    assert len(readers()) == sum(len(each.names) for each in set(readers().values())) == 9
    assert all(isinstance(each, Reader) for each in readers().values())
