"""What all commands parse with."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from gendd.errors import UserError

if TYPE_CHECKING:
    pass

COMMANDS = {
    "distill": "distil a teacher into a student; without arguments the recipe 'digits', end to end",
    "train": "train a model on labels alone (a teacher, or a recipe's student for comparison)",
    "evaluate": "score a finished run on its test images, or a network by its name and weights",
    "probe": "fit the linear readout of a finished run anew and keep the better one",
    "predict": "classify image files with a student",
    "export": "write a finished student as ONNX, for torch.export, for timm or as plain safetensors",
    "push": "upload a finished student to the Hugging Face Hub",
    "recipes": "list the recipes, the published experiments among them",
    "models": "list the networks",
    "methods": "list the methods, or what can be set of one",
    "compare": "compare methods as a file says: rates, seeds, tables and a report",
    "import-released": "make a run of a checkpoint of the authors' released code",
    "verify": "recompute the method's reference numbers on this machine",
}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}. See: {self.prog} --help.")
