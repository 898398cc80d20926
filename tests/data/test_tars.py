"""The index of tars, from their headers and as a stream."""

from __future__ import annotations

import gzip
import os
import shlex
import tarfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from test_shards import captioned, labelled, numbers, picture, write_shards, write_tar

from gendd.config import DataConfig
from gendd.data import ImageSet, load_data, train_loader
from gendd.data.encoded import Held
from gendd.data.members import Members, images_at
from gendd.data.survey import Contents, survey
from gendd.data.tars import (
    BAD_LABEL,
    NO_LABEL,
    find_tars,
    hash_of,
    is_remote,
    label_of,
    read_samples,
)
from gendd.errors import UserError
from gendd.run.settings import absolute

MIXED = [
    ("__meta__", b"not a sample"),
    *captioned(0),
    ("folder/" + 30 * "long-" + "name.png", picture(1)),
    ("folder/" + 30 * "long-" + "name.cls", b"3\n"),
    ("alone.txt", b"no image"),
    *labelled(2, b"two"),
    ("b.seg.png", picture(9)),
    ("b.WEBP", picture(3, "WEBP")),
    ("b.png", b""),
    ("zähler.jpeg", picture(4, "JPEG")),
]


def columns(contents: Contents) -> dict[str, object]:
    """Everything except the byte offsets."""
    found = {field.name: getattr(contents, field.name) for field in fields(contents)}
    found = {name: value for name, value in found.items() if name not in ("url", "starts", "offsets")}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found.items()}


def without_name(contents: Contents) -> dict[str, object]:
    found = columns(contents)
    for name in ("hashes", "stray", "odd_label"):
        del found[name]
    return found


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_headers_tell_what_the_stream_gives(tmp_path: Path, form: int) -> None:
    path = str(write_tar(tmp_path / "a.tar", MIXED, form))
    (contents,) = survey([path], 0)
    assert contents.labels.tolist() == [NO_LABEL, 3, BAD_LABEL, NO_LABEL, NO_LABEL]
    assert (contents.imageless, contents.damage, contents.gray) == (1, "", False)
    assert "'alone'" in contents.stray and "'two' in sample '00002'" in contents.odd_label
    # .png goes before .webp, though it is empty
    assert contents.sizes.tolist()[3] == 0
    images = images_at([contents], torch.arange(5))
    assert isinstance(images, Members)
    streamed = list(read_samples(path))
    assert [sample["__key__"] for sample in streamed][1:3] == ["folder/" + 30 * "long-" + "name", "alone"]
    assert images.read(1) == picture(1) and images.read(4) == picture(4, "JPEG")
    assert hash_of(path, streamed[0]["__key__"]) == contents.hashes[0]
    for row, sample in enumerate(each for each in streamed if each["__key__"] != "alone"):
        # a stream may begin at any sample
        assert next(read_samples(path, int(contents.starts[row]))).keys() == sample.keys()


@pytest.mark.parametrize("kind", ["pipe", "gz", "file"])
def test_streamed_tars_hold_the_same(tmp_path: Path, kind: str) -> None:
    path = write_tar(tmp_path / "a.tar", MIXED)
    (walked,) = survey([str(path)], 0)
    urls = {"pipe": f"pipe:cat {shlex.quote(str(path))}", "gz": f"{path}.gz", "file": f"file://{path}"}
    Path(urls["gz"]).write_bytes(gzip.compress(path.read_bytes()))
    (contents,) = survey([urls[kind]], 0)
    assert without_name(contents) == without_name(walked)
    assert set(contents.starts.tolist()) == {-1}
    if kind != "gz":
        # a file is identified by its name, wherever it is
        assert contents.hashes.tolist() == walked.hashes.tolist()
    rows = torch.tensor([0, 1, 4])
    held = images_at([contents], rows)
    assert isinstance(held, Held) and "'00000'" in held.where(0)
    wanted = images_at([walked], rows)
    assert [held.read(row) for row in range(3)] == [wanted.read(row) for row in range(3)]


@pytest.mark.parametrize("workers", [0, 2])
def test_piped_shards_train(tmp_path: Path, workers: int) -> None:
    write_shards(tmp_path / "train", labelled, counts=[10, 3, 7])
    write_shards(tmp_path / "test", labelled, counts=[4])
    config = DataConfig(
        name="webdataset",
        path=f"pipe:cat {tmp_path}/train/{{0000..0002}}.tar",
        test_path=f"pipe:cat {tmp_path}/test/0000.tar",
        image_size=8,
        validation=0.25,
        augment="none",
        batch_size=4,
        workers=workers,
    )
    data = load_data(config)
    assert data.val is not None
    batches = list(train_loader(data, config, seed=0, epoch=0))
    assert len(batches) == 3
    held = numbers(data.val.images(range(5)))
    met = [number for batch in batches for number in numbers((batch.images * 255).round())]
    assert len(set(met)) == 12 and not set(met) & set(held)
    assert data.test.labels is not None and data.test.labels.tolist() == [0, 1, 2, 3]
    # left in the middle of a command's output
    iterator = iter(train_loader(data, config, seed=0, epoch=0))
    next(iterator)
    del iterator


def test_a_failing_command_is_a_damaged_shard(tmp_path: Path) -> None:
    (contents,) = survey([f"pipe:cat {tmp_path}/nowhere.tar 2>/dev/null"], 0)
    assert len(contents) == 0 and contents.damage and "\n" not in contents.damage


@pytest.mark.parametrize(
    ("content", "label"),
    [(None, NO_LABEL), (b"7", 7), (b" 12\n", 12), (b"", BAD_LABEL), (b"1.0", BAD_LABEL), (b"-1", BAD_LABEL)]
    + [(str(label).encode(), BAD_LABEL) for label in (2**31, 10**12, 10**30)],
)
def test_labels(content: bytes | None, label: int) -> None:
    assert label_of(content) == label


def test_hashes_are_spread_and_of_the_names_alone() -> None:
    hashes = np.array([hash_of("a/0.tar", str(key)) for key in range(2000)])
    assert hash_of("elsewhere/0.tar", "3") == hashes[3] != hash_of("a/1.tar", "3")
    shares = np.bincount(hashes // (2**63 // 10), minlength=10)[:10]
    assert shares.min() > 140 and shares.max() < 260


# --- which tars --------------------------------------------------------------------------------------


def test_tars_are_found_by_directory_glob_and_braces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(path) for path in write_shards(tmp_path / "s", counts=[1] * 12)]
    assert find_tars(str(tmp_path), "data.path") == paths
    assert find_tars(str(tmp_path / "s" / "*.tar"), "data.path") == paths
    assert find_tars(f"{tmp_path}/s/{{0000..0009}}.tar", "data.path") == paths[:10]
    assert find_tars(paths[3], "data.path") == [paths[3]]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_tars("~/s/00{10,11}.tar", "data.path") == paths[10:]
    assert find_tars("https://a/{0..2}.tar", "data.path") == [f"https://a/{n}.tar" for n in range(3)]
    with pytest.raises(UserError, match=r"data\.path: .*\$\{nothing\}.*WDS_nothing"):
        find_tars("${nothing}/0.tar", "data.path")


@pytest.mark.parametrize(
    ("url", "remote"),
    [
        ("pipe:cat a.tar", True),
        ("https://a/b.tar", True),
        ("hf://datasets/a/b.tar", True),
        ("/a/b.tar", False),
        ("C:\\a.tar", False),
        ("a/{0..3}.tar", False),
    ],
)
def test_remote(url: str, remote: bool) -> None:
    assert is_remote(url) is remote
    # used in a teacher's cache key; a URL is not a local file
    assert (absolute(url) == url) is (remote or url.startswith("/"))


# --- what was found is kept --------------------------------------------------------------------------


def test_tars_are_looked_through_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDD_CACHE", str(tmp_path / "cache"))
    paths = [str(path) for path in write_shards(tmp_path / "s", labelled, counts=[4, 2])]
    first = survey(paths, 0)
    stored = sorted((tmp_path / "cache" / "shards").iterdir())
    assert [file.suffix for file in stored] == [".npz", ".npz"]
    with monkeypatch.context() as patch:
        patch.setattr("gendd.data.survey._walked", None)
        again = survey(paths, 0)
    assert [columns(each) for each in again] == [columns(each) for each in first]
    assert [each.url for each in again] == paths and again[0].starts.tolist() == first[0].starts.tolist()
    # another content of the same length
    write_tar(Path(paths[0]), [file for number in range(4) for file in labelled(number, b"9")])
    os.utime(paths[0], ns=(1, 1))
    assert survey(paths, 0)[0].labels.tolist() == [9] * 4
    for file in stored:
        file.write_bytes(b"cut short")
    assert [len(each) for each in survey(paths, 0)] == [4, 2]


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("GENDD_CACHE", str(tmp_path / "file"))
    (path,) = write_shards(tmp_path / "s", counts=[3])
    assert [len(each) for each in survey([str(path)], 0)] == [3]


def test_large_sets_are_looked_through_by_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gendd.data.survey._ALONE_BYTES", 0)
    paths = [str(path) for path in write_shards(tmp_path / "s", counts=[3, 1, 4, 1, 5])]
    assert [len(each) for each in survey(paths, 2)] == [3, 1, 4, 1, 5]


def test_an_image_that_is_gone_is_named(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path / "s", counts=[3])
    (contents,) = survey([str(path)], 0)
    images = ImageSet(images_at([contents], torch.arange(3)), None, 3, 8)
    path.unlink()
    with pytest.raises(UserError, match=r"0000.tar.*No such file"):
        images.images([1])
