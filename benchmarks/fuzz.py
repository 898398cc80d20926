"""Fuzz everything that is read: damaged input may only cause a user error.

Each target randomly changes valid input with hypothesis, in a separate process. Exceptions other than
``UserError``, messages of more than one line, examples that take more than a minute and the death of the
process are failures; each failure is shrunk, printed and counted once.

    python benchmarks/fuzz.py --minutes 10                     # all targets, one after the other
    python benchmarks/fuzz.py images students --minutes 1
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import resource
import signal
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import records
import torch
import yaml
from damage import TEXTS, VALUES, Anywhere, altered, damaged, encoded, photograph, pictures
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors.torch import save_file

from gendd.cli import parse_run
from gendd.config import DataConfig, GenDDConfig, RunConfig, keys, load_config, to_dict
from gendd.data import load_data, train_loader
from gendd.data.decoding import decode, frame
from gendd.data.encoded import Held, probe
from gendd.deploy.predict import predict
from gendd.errors import UserError
from gendd.models import create_backbone, load_weights
from gendd.student import Student
from gendd.student.generator import FeatureGenerator

RESULTS = Path(__file__).parent / "results" / "fuzz.csv"
FIELDS = ["target", "minutes", "examples", "failures"]
# limits of one example: seconds, and memory beyond that in use at the start
SECONDS, BYTES = 60, 6 * 1024**3
# how examples are generated, and what a target does with one
Target = tuple[SearchStrategy[Any], Callable[[Any], None]]

# --- targets -----------------------------------------------------------------------------------------


def of_config(folder: Path) -> Target:
    """Configuration files: odd values in valid ones, and damaged text; and dotted options."""
    sound = to_dict(RunConfig())
    file = folder / "config.yaml"
    written = altered(sound).map(lambda values: yaml.safe_dump(values).encode("utf-8", "surrogatepass"))
    text = st.one_of(written, damaged(yaml.safe_dump(sound).encode()))
    known = st.sampled_from([*keys(), "kd.temperature", "method", "extends", "x"])
    value = st.one_of(VALUES.map(str), TEXTS, st.sampled_from(["gendd", "[kd]", "kd", "digits", "none"]))
    option = st.tuples(known, st.sampled_from(["=", "+=", " "]), value)

    def read(example: bytes | list[tuple[str, str, str]]) -> None:
        if isinstance(example, bytes):
            file.write_bytes(example)
            load_config(file)
            return
        words = [f"--{key}{sign}{text}" for key, sign, text in example if sign != " "]
        words += [part for key, sign, text in example if sign == " " for part in (f"--{key}", text)]
        parse_run("distill", words)

    return st.one_of(text, st.lists(option, min_size=1, max_size=3)), read


def of_lists(folder: Path) -> Target:
    """Lists of images with labels, class names, and their roots."""
    pictures(folder, 12)
    part = st.one_of(
        st.integers(0, 11).map(lambda number: f"{number}.png {number % 3}"),
        st.sampled_from(
            ["0.png", "0.png -1", "1.png 99999999999", "é.png 1", "none.png 0", "0.png 1e3", "\t"]
        ),
        st.text(max_size=20),
    )
    text = st.lists(part, max_size=14).map("\n".join)
    lines = st.one_of(text.map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary(max_size=60))
    whole = "\n".join(f"{number}.png {number % 3}" for number in range(12)).encode()
    some = st.one_of(st.just(whole), damaged(whole), lines)
    names = st.one_of(st.none(), st.just(b"a\nb\nc\n"), st.binary(max_size=20))
    root = st.one_of(st.none(), st.just(str(folder)), TEXTS)

    def read(example: tuple[bytes, bytes, bytes | None, str | None, bool]) -> None:
        train, test, classes, root, seen = example
        for name, content in (("train.txt", train), ("test.txt", test), ("names.txt", classes or b"")):
            (folder / name).write_bytes(content)
        load_data(
            DataConfig(
                "list",
                str(folder / "train.txt"),
                str(folder / "test.txt"),
                root=root,
                classes=None if classes is None else str(folder / "names.txt"),
                labels=seen,
                validation=0.2,
            )
        )

    return st.tuples(some, some, names, root, st.booleans()), read


def of_tars(folder: Path) -> Target:
    """Tar shards, plain and compressed: indexed, split and read for an epoch."""
    pictures(folder, 12)
    sound = {}
    for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz")):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode=mode) as tar:  # type: ignore[call-overload]
            for number in range(12):
                tar.add(folder / f"{number}.png", f"{number}.png")
                label = tarfile.TarInfo(f"{number}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(str(number % 3).encode()))
        sound[suffix] = content.getvalue()
    test = folder / "test"
    for number in range(3):
        (test / str(number)).mkdir(parents=True)
        (folder / f"{number}.png").rename(test / str(number) / "0.png")
    numbers = itertools.count()
    example = st.one_of(*(st.tuples(st.just(suffix), damaged(each)) for suffix, each in sound.items()))

    def read(example: tuple[tuple[str, bytes], bool, float, float]) -> None:
        (suffix, content), seen, corrupt, held = example
        # the index of a tar is cached by its name
        file = folder / f"{next(numbers)}{suffix}"
        file.write_bytes(content)
        try:
            config = DataConfig(
                "webdataset",
                str(file),
                str(test),
                image_size=8,
                labels=seen,
                max_corrupt=corrupt,
                validation=held,
                workers=0,
                batch_size=4,
            )
            for _ in train_loader(load_data(config), config, seed=0, epoch=0):
                pass
        finally:
            file.unlink()

    shares = st.sampled_from([0.0, 0.1, 0.5])
    return st.tuples(example, st.booleans(), shares, shares), read


def of_weights(folder: Path) -> Target:
    """Weights files: safetensors, and both of torch's formats."""
    network = create_backbone("cifar/resnet8x0.25", 3, in_channels=1)
    state = network.net.state_dict()
    files = {name: folder / name for name in ("a.safetensors", "b.pth", "c.pth")}
    save_file(state, files["a.safetensors"])
    torch.save({"model": state, "epoch": 3, "acc": np.float64(1)}, files["b.pth"])
    torch.save(state, files["c.pth"], _use_new_zipfile_serialization=False)
    sound = {name: file.read_bytes() for name, file in files.items()}
    example = st.one_of(*(st.tuples(st.just(name), damaged(each)) for name, each in sound.items()))

    def read(example: tuple[str, bytes]) -> None:
        name, content = example
        files[name].write_bytes(content)
        load_weights(network, files[name])

    return example, read


def of_images(folder: Path) -> Target:
    """Images of every supported format, several kinds of each."""
    sound = encoded(photograph())
    example = st.one_of(*(st.tuples(st.just(name), damaged(each)) for name, each in sound.items()))

    def read(example: tuple[tuple[str, bytes], int]) -> None:
        (_, content), channels = example
        data = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)
        with contextlib.suppress(UserError):
            probe(Held(data, torch.tensor([len(data)]), Anywhere()))
        frame(decode(content, "here", channels), 32, 0.9)

    return st.tuples(example, st.sampled_from([1, 3])), read


def of_students(folder: Path) -> Target:
    """A student's config.json, loaded and used for a prediction."""
    pictures(folder, 1)
    backbone = create_backbone("cifar/resnet8x0.25", 3, in_channels=1)
    settings = GenDDConfig(token_width=4, head_width=16, head_depth=1, timesteps=20)
    generator = FeatureGenerator(backbone.feature_dim, 10, settings)
    info = {"class_names": ["a", "b", "c"], "image_size": 8, "framing": 0.9, "data": "digits"}
    Student(backbone, generator, torch.nn.Linear(10, 3), info=info).save(folder)
    config = folder / "config.json"
    sound = config.read_bytes()
    structured = altered(json.loads(sound)).map(lambda values: json.dumps(values).encode())

    def read(example: bytes) -> None:
        config.write_bytes(example)
        (said,) = predict(folder, [str(folder / "0.png")], uncertainty=2)
        if said.error is not None:
            raise UserError(said.error)

    return st.one_of(structured, structured, damaged(sound)), read


TARGETS: dict[str, Callable[[Path], Target]] = {
    "config": of_config,
    "lists": of_lists,
    "tars": of_tars,
    "weights": of_weights,
    "images": of_images,
    "students": of_students,
}


# --- running -----------------------------------------------------------------------------------------


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))


class TooLongError(BaseException):
    """An example took too long; not to be caught by the handlers of input errors."""


def too_long(number: int, frame: FrameType | None) -> None:
    raise TooLongError(f"an example of more than {SECONDS} seconds")


def fuzz(name: str, minutes: float, tally: Any) -> None:
    """Run a target for this many minutes; examples and failures are counted in ``tally``."""
    signal.signal(signal.SIGALRM, too_long)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary, open(os.devnull, "w") as nowhere:
        os.environ["GENDD_CACHE"] = str(Path(temporary) / "cache")
        (folder := Path(temporary) / "input").mkdir()
        strategy, read = TARGETS[name](folder)
        limit_memory()
        known: set[str] = set()
        last: list[Any] = [None]
        end = time.monotonic() + 60 * minutes

        def one(example: Any) -> None:
            if time.monotonic() > end:
                return
            tally[0] += 1
            signal.alarm(SECONDS)
            try:
                with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
                    read(example)
            except UserError as error:
                if len(str(error).splitlines()) != 1 and place_of(error) not in known:
                    last[0] = example
                    raise AssertionError(f"no single line: {error!r}") from error
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                if place_of(error) not in known:
                    last[0] = example
                    raise
            finally:
                signal.alarm(0)

        number = 0
        while time.monotonic() < end:
            number += 1
            quiet = settings(
                max_examples=500,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.generate, Phase.shrink),
                report_multiple_bugs=False,
            )
            try:
                seed(number)(quiet(given(strategy)(one)))()
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                tally[1] += 1
                known.add(place_of(error.__cause__ or error))
                print(f"--- {name}: {str(last[0])[:3000]}", flush=True)
                traceback.print_exception(error, limit=-12, file=sys.stdout)


def place_of(error: BaseException) -> str:
    """Return where an exception was raised, to count each once."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "gendd" in frame.filename and "benchmarks" not in frame.filename]
    frame = (ours or frames)[-1]
    return f"{type(error).__name__} {frame.filename}:{frame.lineno}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.targets if name not in TARGETS]:
        parser.error(f"expected targets of {', '.join(TARGETS)}, got {', '.join(unknown)}")
    failed = False
    forking = multiprocessing.get_context("fork")
    for name in arguments.targets or TARGETS:
        tally = forking.Array("q", 2)
        process = forking.Process(target=fuzz, args=(name, arguments.minutes, tally))
        process.start()
        process.join()
        examples, failures = tally[:]
        if process.exitcode:
            print(f"--- {name}: the process ended with {process.exitcode}")
            failures += 1
        row = {"target": name, "minutes": arguments.minutes, "examples": examples, "failures": failures}
        print(row, flush=True)
        records.replace(RESULTS, FIELDS, {"target": name}, [row])
        failed |= failures > 0
    sys.exit(failed)


if __name__ == "__main__":
    main()
