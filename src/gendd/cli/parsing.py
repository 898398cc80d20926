"""Shared parsing of all commands."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from gendd.errors import UserError
from gendd.messages import say

COMMANDS = {
    "distill": "distil a teacher into a student; without arguments run the recipe 'demo', end to end",
    "train": "train a model on labels alone (a teacher, or a recipe's student for comparison)",
    "cache": "precompute the teacher's outputs on the training images of a run",
    "profile": "time the parts of a run's training step",
    "evaluate": "score a finished run on its test images, or a network by name and weights",
    "watch": "follow the progress of a running training in the terminal",
    "probe": "refit the linear readout of a finished run and keep the better one",
    "predict": "classify image files with a student",
    "export": "export a finished student to ONNX, torch.export, timm or plain safetensors",
    "push": "upload a finished student to the Hugging Face Hub",
    "recipes": "list the recipes, including the published experiments",
    "models": "list the networks",
    "methods": "list the methods, or the settings of one",
    "compare": "compare methods as described in a file: learning rates, seeds, tables and a report",
    "import-released": "import a checkpoint of the authors' released code as a run",
    "verify": "recompute the method's reference numbers on this machine",
}


# suggested next command after each; {0} is the run folder
_NEXT = {
    "distill": "gendd predict {0} IMAGE…, or gendd export {0} --to onnx",
    "train": "gendd distill --teacher {0} …, or gendd predict {0} IMAGE…",
    "evaluate": "gendd probe {0}, or gendd export {0} --to onnx",
    "cache": "gendd distill with the same options",
    "profile": "gendd distill with the same options",
    "network": "gendd distill --teacher {0} …, or --student {0}",
    "watch": "gendd predict {0} IMAGE…, or gendd export {0} --to onnx",
    "stopped": "the same gendd distill or train with --resume",
    "probe": "gendd predict {0} IMAGE…, or gendd export {0} --to onnx",
    "predict": "gendd export {0} --to onnx, or gendd push {0} NAME/REPOSITORY",
    "export": "run the file as docs/export.md shows, or gendd push {0} NAME/REPOSITORY",
    "push": "gendd predict {0} IMAGE…",
    "recipes": "gendd distill --recipe NAME, with --dry-run to see what it takes",
    "models": "gendd distill --teacher NAME --student NAME …",
    "methods": "gendd distill --method NAME, or gendd methods NAME for its settings",
    "compare": "open {0}",
    "import-released": "gendd evaluate {0}",
    "verify": "gendd distill",
    "dry run": "the same command without --dry-run",
}


def say_next(command: str, place: object = "") -> None:
    """Print the last line of a command: what to do next."""
    say(f"next: {_NEXT[command].format(shlex.quote(str(place)))}")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}. See: {self.prog} --help.")
