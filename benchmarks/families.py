"""Networks of every family as teacher and as student: do the logits follow from the feature?

Tests the smallest network of every module of timm's models, all networks of torchvision, and some families of
transformers, built from their default configuration. All weights are random, including those initialised to
constants, so that layers that start as the identity count. On noise of each network's input size, it checks
that its classifier applied to the feature gives the network's own logits, that a step of GenDD with it as
teacher and as student gives finite gradients, and measures the cost per image. Each network runs in a
separate process; networks already in the CSV are skipped.

    python benchmarks/families.py [timm/levit_128s] [--only timm/levit] [--seconds 600]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import records
import torch
from torch import Tensor, nn

from gendd.models.feature import ADDED

RESULTS = Path(__file__).parent / "results" / "families.csv"
FIELDS = [
    "library",
    "family",
    "model",
    "parameters",
    "size",
    "width",
    "classifier",
    "feature",
    "difference",
    "step",
    "multiply_adds",
    "note",
]
CLASSES = 10
TRANSFORMERS = (
    "vit",
    "deit",
    "swin",
    "swinv2",
    "convnext",
    "convnextv2",
    "resnet",
    "mobilenet_v2",
    "beit",
    "dinov2",
    "regnet",
    "levit",
    "segformer",
)


def count(name: str) -> int:
    """Return the number of parameters of a network without allocating its weights; 0 for transformers."""
    import timm
    from torchvision import models

    library, _, model = name.partition("/")
    if library == "hf":
        return 0
    if library == "torchvision":
        return int(next(iter(models.get_model_weights(model))).meta["num_params"])
    with torch.device("meta"):
        return sum(value.numel() for value in timm.create_model(model).parameters())


def family_of(name: str) -> str:
    """Return the module of the library that defines a network, as ``library/module``."""
    import timm
    from torchvision import models

    library, _, model = name.partition("/")
    if library == "hf":
        return name
    maker = timm.model_entrypoint(model) if library == "timm" else models.get_model_builder(model)
    return f"{library}/{maker.__module__.rpartition('.')[2]}"


def networks(only: str, done: set[str]) -> Iterator[str]:
    """Yield the names of the networks still to be tested."""
    from gendd.models import list_models

    families: dict[str, list[str]] = defaultdict(list)
    for name in [
        *list_models("timm/"),
        *list_models("torchvision/"),
        *(f"hf/{each}" for each in TRANSFORMERS),
    ]:
        families[family_of(name)].append(name)
    for family, names in sorted(families.items()):
        if not family.startswith(only) or (family in done and family.startswith("timm/")):
            continue
        counts: dict[str, int] = {}
        for name in names:
            try:
                counts[name] = count(name)
            except Exception as error:  # networks that can't be built at all
                print(f"{name}: {error}", file=sys.stderr)
        for place, name in enumerate(sorted(counts, key=counts.__getitem__)):
            wanted = place == 0 or family.startswith("torchvision/")
            if wanted and name not in done:
                yield name


def built(name: str, folder: str) -> Any:
    """Build a network by name; one of transformers from the default configuration of its family."""
    from gendd.models import create_backbone

    if name.startswith("hf/"):
        from transformers import AutoConfig

        AutoConfig.for_model(name.removeprefix("hf/")).save_pretrained(folder)
        name = f"hf/{folder}"
    return create_backbone(name, CLASSES)


@torch.no_grad()
def stir(net: nn.Module) -> None:
    """Randomise weights that are constant at first: shifts of norms, their statistics, heads of zeros."""
    torch.manual_seed(0)
    for key, value in net.named_parameters():
        if value.numel() > 1 and float(value.std()) == 0 and not key.startswith(ADDED):
            value.add_(0.1 * torch.randn(value.shape))
    for key, buffer in net.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif key.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)


def own_logits(backbone: Any, images: Tensor) -> Tensor:
    """Return the logits of the network itself, as in its library."""
    found = backbone.net(backbone.prepare(images))
    return found if isinstance(found, Tensor) else found.logits


def step(backbone: Any, images: Tensor) -> None:
    """Take a step of GenDD in which the network teaches a copy of itself."""
    from gendd.config import RunConfig
    from gendd.methods import build_method

    labels = torch.arange(len(images))
    learner = build_method(RunConfig(), copy.deepcopy(backbone), backbone).train()
    learner.prepare([(images, labels)])
    loss = learner(images, labels).loss
    loss.backward()
    learned = [value.grad for value in learner.backbone.parameters() if value.grad is not None]
    if not learned or not all(bool(each.isfinite().all()) for each in [loss, *learned]):
        raise ArithmeticError(f"loss {float(loss):.3g}, or a gradient that is not finite")


def look(name: str) -> dict[str, Any]:
    """Return the results of a network."""
    from gendd.models import Frozen, count_parameters, multiply_adds

    with tempfile.TemporaryDirectory() as folder:
        backbone = built(name, folder)
    net = backbone.net
    stir(net)
    settings = getattr(net, "pretrained_cfg", None) or {}
    side = (backbone.image_size or settings.get("input_size", (224,))[-1:])[-1]
    images = torch.rand(2, backbone.in_channels, side, side)
    layers = [net.get_submodule(each) for each in backbone.classifier_names]
    kinds = " and ".join(type(each).__name__ for each in layers)
    if len(layers) > 1:
        kinds += ", averaged" + (", a feature each" if len(backbone.reading.modules) > 1 else "")
    row = {
        "parameters": count_parameters(net),
        "size": side,
        "width": backbone.feature_dim,
        "classifier": kinds,
        "feature": backbone.describe().partition("feature = ")[2].partition(", D ")[0],
    }
    backbone.eval()
    with torch.no_grad():
        expected = own_logits(backbone, images)
        feature, logits = Frozen(copy.deepcopy(backbone))(images)
        linear = feature @ backbone.classifier.weight.T
        if backbone.classifier.bias is not None:
            linear = linear + backbone.classifier.bias
        scale = float(expected.abs().max())
        apart = max(float((found - expected).abs().max()) for found in (logits, linear))
        row["difference"] = f"{apart / scale:.1e}" if math.isfinite(scale) and scale > 0 else "nan"
    row["multiply_adds"] = multiply_adds(net, backbone.prepare(images[:1]))
    try:
        step(backbone, images)
        row["step"] = "yes"
    except Exception as error:
        row |= {"step": "no", "note": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    return row


def tell(name: str, sender: Connection) -> None:
    """Send the results of a network, or the error message."""
    from gendd.errors import UserError, typed_line

    try:
        sender.send(look(name))
    except Exception as error:  # whatever any library's code raises
        said = str(error) if isinstance(error, UserError) else typed_line(error)
        sender.send({"note": said[:300]})


def measure(name: str, seconds: int) -> dict[str, Any]:
    """Test a network in a separate process, forked, as importing the libraries takes seconds."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=tell, args=(name, sender))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = (
            receiver.recv() if receiver.poll(seconds) else {"note": f"not done in {seconds} s"}
        )
    except EOFError:
        process.join()
        found = {"note": f"ended with {process.exitcode}"}
    process.kill()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", help="networks that are seen whatever is there; none: all missing"
    )
    parser.add_argument("--only", default="", help="families of names that begin so")
    parser.add_argument("--again", action="store_true", help="also those that did not succeed")
    parser.add_argument("--seconds", type=int, default=600, help="time limit of a network")
    parser.add_argument("--look", metavar="NAME", help="print what is found of one network")
    arguments = parser.parse_args()
    if arguments.look:
        print(json.dumps(look(arguments.look)))
        return
    import gendd.methods  # noqa: F401  what the processes share

    torch.set_num_threads(1)  # a process that forks must not have more threads
    rows = records.read(RESULTS)
    there = [row for row in rows if row["step"] == "yes"] if arguments.again else rows
    done = {f"{row['library']}/{row[key]}" for row in there for key in ("family", "model")}
    for name in arguments.names or networks(arguments.only, done):
        library, _, model = name.partition("/")
        row: dict[str, Any] = {
            "library": library,
            "family": family_of(name).partition("/")[2],
            "model": model,
        }
        row["parameters"] = count(name) or ""
        row |= measure(name, arguments.seconds)
        key = {each: row[each] for each in ("library", "family", "model")}
        records.replace(RESULTS, FIELDS, key, [row])
        print(name, row.get("difference", ""), row.get("step", ""), row.get("note", ""), flush=True)


if __name__ == "__main__":
    main()
