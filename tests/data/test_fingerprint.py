"""Fingerprints: they change with everything that affects training, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from test_own_validation import WRITERS, png, write_folder

from gendd.config import DataConfig
from gendd.data import load_data

Prints = dict[str, str]


def prints(config: DataConfig) -> Prints:
    return {name: part.fingerprint for name, part in load_data(config).parts.items()}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_wherever_they_lie_and_are_held(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = WRITERS[kind](tmp_path / "set", {})
    first = prints(DataConfig(kind, path, image_size=8))
    assert set(first) == {"training", "validation", "test"} and len(set(first.values())) == 3
    for in_memory in (True, False):
        assert prints(DataConfig(kind, path, image_size=8, in_memory=in_memory)) == first
    shutil.copytree(path, tmp_path / "moved" / "set")
    monkeypatch.chdir(tmp_path / "moved")
    assert prints(DataConfig(kind, "set", image_size=8)) == first


def test_another_where_anything_differs(tmp_path: Path) -> None:
    root = Path(write_folder(tmp_path / "set", {}))
    config = DataConfig("folder", str(root))
    seen = [prints(config)["training"]]
    (root / "train" / "a" / "new.png").write_bytes(png(1))
    seen.append(prints(config)["training"])
    (root / "train" / "a" / "new.png").write_bytes(png(2))
    seen.append(prints(config)["training"])
    os.rename(root / "train" / "a" / "new.png", root / "train" / "a" / "newer.png")
    seen.append(prints(config)["training"])
    os.rename(root / "train" / "a" / "newer.png", root / "train" / "b" / "newer.png")
    seen.append(prints(config)["training"])
    (root / "train" / "b" / "newer.png").unlink()
    assert len(set(seen)) == 5
    assert prints(config)["training"] == seen[0]
    assert prints(DataConfig("folder", str(root), train_images=9))["training"] not in seen
    assert prints(DataConfig())["training"] != prints(DataConfig(split_seed=1))["training"]
