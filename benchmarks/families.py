"""Networks of every family as teacher and as student: is the feature what the logits are made of?

Of every module of timm's models and of torchvision's the smallest network, of torchvision all others of at
most 100 M parameters too, and of transformers some families, built from their default configuration. Weights
are random, those that start out constant too, so that a layer that does nothing yet counts. Each is seen on
noise of the size it wants: whether what its classifier says of the feature is what the network itself says,
whether a step of GenDD, with it as the teacher and as the student, and one of cross-entropy give finite
gradients, and what an image costs. A process a network; what is in the CSV already is not run again.

    python benchmarks/families.py [--only timm/levit] [--seconds 600]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import records
import torch
from torch import Tensor, nn

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
LARGEST = 100_000_000
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
    "efficientformer",
    "levit",
    "segformer",
)


def count(name: str) -> int:
    """Parameters of a network of timm or torchvision, whose weights are not made."""
    import timm
    import torchvision

    library, _, model = name.partition("/")
    settings: dict[str, Any] = {}
    if model in ("googlenet", "inception_v3") and library == "torchvision":
        settings = {"init_weights": False, "aux_logits": False}
    with torch.device("meta"):
        net = (
            timm.create_model(model) if library == "timm" else torchvision.models.get_model(model, **settings)
        )
    return sum(value.numel() for value in net.parameters())


def networks(only: str, done: set[str]) -> Iterator[tuple[str, str, int | None]]:
    """Family, name and parameters of the networks that are to be seen and are not there yet."""
    import timm
    from torchvision import models

    families: dict[str, list[str]] = defaultdict(list)
    for name in timm.list_models():
        families[f"timm/{timm.model_entrypoint(name).__module__.rpartition('.')[2]}"].append(f"timm/{name}")
    for name in models.list_models(module=models):
        module = models.get_model_builder(name).__module__.rpartition(".")[2]
        families[f"torchvision/{module}"].append(f"torchvision/{name}")
    for family, names in sorted(families.items()):
        if not family.startswith(only) or (family in done and family.startswith("timm/")):
            continue
        counts: dict[str, int] = {}
        for name in names:
            try:
                counts[name] = count(name)
            except Exception as error:  # of networks that can't be built at all
                print(f"{name}: {error}", file=sys.stderr)
        ordered = sorted(counts, key=counts.__getitem__)
        for place, name in enumerate(ordered):
            if name not in done and (place == 0 or (name.startswith("torch") and counts[name] <= LARGEST)):
                yield family, name, counts[name]
    for family in TRANSFORMERS:
        if f"hf/{family}".startswith(only) and f"hf/{family}" not in done:
            yield f"hf/{family}", f"hf/{family}", None


def built(name: str, folder: str) -> Any:
    """The network by its name; one of transformers from the default configuration of its family."""
    from gendd.models import create_backbone

    if name.startswith("hf/"):
        from transformers import AutoConfig

        AutoConfig.for_model(name.removeprefix("hf/")).save_pretrained(folder)
        name = f"hf/{folder}"
    return create_backbone(name, CLASSES)


@torch.no_grad()
def stir(net: nn.Module) -> None:
    """Draw what is constant at first: the shift of a norm, its statistics, a head of zeros."""
    torch.manual_seed(0)
    for value in net.parameters():
        if value.numel() > 1 and float(value.std()) == 0:
            value.add_(0.1 * torch.randn(value.shape))
    for key, value in net.named_buffers():
        if key.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.8, 1.2)


def own_logits(backbone: Any, images: Tensor) -> Tensor:
    """What the network itself gives of images, as its library has it."""
    found = backbone.net(backbone.prepare(images))
    return found if isinstance(found, Tensor) else found.logits


def steps(backbone: Any, images: Tensor) -> None:
    """A step of GenDD, in which the network teaches a copy of its own, and one of cross-entropy."""
    from gendd.config import RunConfig
    from gendd.methods import build_method

    labels = torch.arange(len(images))
    teacher = copy.deepcopy(backbone)
    for method in ("gendd", "supervised"):
        student = copy.deepcopy(backbone)
        learner = build_method(RunConfig(method=method), student, teacher).train()
        learner.prepare([(images, labels)])
        loss = learner(images, labels).loss
        loss.backward()
        learned = [value.grad for value in learner.parameters() if value.grad is not None]
        if not learned or not all(bool(each.isfinite().all()) for each in [loss, *learned]):
            raise ArithmeticError(f"{method}: loss {float(loss):.3g}, a gradient is not finite")


def look(name: str) -> dict[str, Any]:
    """What is found of a network."""
    from gendd.models import Frozen, count_parameters, multiply_adds

    with tempfile.TemporaryDirectory() as folder:
        backbone = built(name, folder)
    net = backbone.net
    stir(net)
    settings = getattr(net, "pretrained_cfg", None) or {}
    side = (backbone.image_size or settings.get("input_size", (224,))[-1:])[-1]
    images = torch.rand(4, backbone.in_channels, side, side)
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
        steps(backbone, images)
        row["step"] = "yes"
    except Exception as error:
        row |= {"step": "no", "note": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    return row


def measure(name: str, seconds: int) -> dict[str, Any]:
    """What is found of a network by a process of its own, or what it said instead."""
    command = [sys.executable, "-W", "ignore", __file__, "--look", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"note": f"not done in {seconds} s"}
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
    return {"note": said[-1].partition("UserError: ")[2] or said[-1][:300]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="families of names that begin so")
    parser.add_argument("--again", action="store_true", help="also those that did not succeed")
    parser.add_argument("--seconds", type=int, default=600, help="time limit of a network")
    parser.add_argument("--look", metavar="NAME", help="print what is found of one network")
    arguments = parser.parse_args()
    if arguments.look:
        print(json.dumps(look(arguments.look)))
        return
    rows = records.read(RESULTS)
    kept = [row for row in rows if row["step"] == "yes" or "parameters: left out" in row["note"]]
    there = kept if arguments.again else rows
    done = {f"{row['library']}/{row[key]}" for row in there for key in ("family", "model")}
    for family, name, parameters in networks(arguments.only, done):
        library, _, model = name.partition("/")
        row = {
            "library": library,
            "family": family.partition("/")[2],
            "model": model,
            "parameters": parameters or "",
        }
        if (parameters or 0) > LARGEST and library == "timm":
            row["note"] = "more than 100 M parameters: left out"
        else:
            row |= measure(name, arguments.seconds)
        key = {each: row[each] for each in ("library", "family", "model")}
        records.replace(RESULTS, FIELDS, key, [row])
        print(name, row.get("difference", ""), row.get("step", ""), row.get("note", ""), flush=True)


if __name__ == "__main__":
    main()
