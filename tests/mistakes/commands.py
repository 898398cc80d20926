"""Words that a command does not take, and comparisons that can't be."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from mistakes.case import Case, Made, Place

# RUN, IMAGES and OUT stand for those of the place
_WORDS = [
    "nothing",
    "distil",
    "--unknown",
    "evaluate",
    "evaluate RUN more",
    "evaluate RUN --readout best",
    "evaluate RUN --readout",
    "evaluate RUN --unknown",
    "evaluate RUN/student",
    "evaluate IMAGES",
    "probe",
    "probe RUN --target nothing",
    "probe RUN --target",
    "probe RUN --train-images many",
    "probe RUN --train-images 0",
    "probe RUN --train-images -5",
    "probe RUN --device cuda",
    "probe RUN --device gpu",
    "probe RUN/student",
    "predict",
    "predict RUN",
    "predict RUN IMAGES --top 0",
    "predict RUN IMAGES --top -1",
    "predict RUN IMAGES --top many",
    "predict RUN IMAGES --readout best",
    "predict RUN IMAGES --uncertainty 1",
    "predict RUN IMAGES --uncertainty -1",
    "predict RUN IMAGES --uncertainty 99999999999",
    "predict RUN IMAGES --uncertainty x",
    "predict IMAGES IMAGES",
    "predict nobody/nothing IMAGES",
    "predict no/such/place IMAGES",
    "export RUN",
    "export RUN --to",
    "export RUN --to onxx",
    "export RUN --to nothing.py:FORMAT",
    "export RUN --to onnx --readout best",
    "export RUN --to onnx --quantize int4",
    "export RUN --to safetensors --quantize int8",
    "export RUN --to onnx --quantize int8 --calibration 0",
    "export RUN --to onnx --quantize int8 --calibration -5",
    "export RUN --to onnx --calibration many",
    "export RUN --to onnx --readout sample --steps 0",
    "export RUN --to onnx --readout sample --steps 99999999",
    "export RUN --to onnx --readout sample --sampler euler",
    "export RUN --to onnx --readout mean --steps 5",
    "export RUN --to onnx --readout sample --seed 99999999999999999999999",
    "export RUN --to onnx --seed x",
    "export RUN --to onnx --out RUN/student/model.safetensors --overwrite",
    "export RUN --to safetensors --out RUN --overwrite",
    "export RUN --to safetensors --out RUN/student --overwrite",
    "export RUN --to timm --out OUT/metrics.json",
    "export RUN --to onnx --out /proc/nothing/a.onnx",
    "export RUN --to onnx --out a.txt",
    "export IMAGES --to onnx",
    "push",
    "push RUN",
    "push IMAGES nobody/nothing",
    "push nothing nobody/nothing",
    "recipes more",
    "recipes --all",
    "models nothing_of_this_name",
    "models timm/[",
    "models a b",
    "methods nothing",
    "methods KD",
    "methods kd gendd",
    "methods nothing.py:Own",
    "methods IMAGES",
    "verify --reference RUN/student/model.safetensors",
    "verify --reference",
    "verify more",
    "compare",
    "compare RUN/config.yaml",
    "compare RUN/config.yaml --dry-run",
    "compare nothing.yaml",
    "import-released",
    "import-released RUN/student/model.safetensors",
    "import-released RUN/student/model.safetensors --student cifar/resnet20",
    "import-released RUN/student/model.safetensors --student cifar/vgg8 --teacher cifar/vgg8 --out OUT/new",
    "import-released RUN/student/model.safetensors --student nothing --teacher cifar/resnet56 --out OUT/new",
    "import-released RUN/config.yaml --student cifar/resnet20 --teacher cifar/resnet56 --out OUT/new",
    "import-released RUN/config.yaml --student cifar/resnet20 --teacher cifar/resnet56 --nothing 5",
    "import-released RUN/config.yaml --student cifar/resnet20 --teacher cifar/resnet56 --seed x",
    "distill --out OUT",
    "distill --out OUT --resume --overwrite",
    "distill --out OUT --resume --training.lr=0.5",
    "distill --out IMAGES --overwrite",
    "distill --out IMAGES --resume",
    "distill --out /proc/nothing",
    "distill --out /dev/null",
    "distill --out RUN/config.yaml/below",
    "distill --out OUT --overwrite --student OUT",
    "distill --out OUT --overwrite --student.weights=OUT",
    "distill --out OUT --overwrite --data=folder --data.path=OUT",
    "train --out OUT --overwrite --teacher cifar/resnet20",
    "train --out OUT --overwrite --method=kd",
    "train --out OUT --overwrite --baselines=[]",
    "train --out OUT --overwrite --gendd.repeats=3",
    "train --out OUT --overwrite --readout=mean",
    "train --out OUT --overwrite --student nothing",
    "train --out OUT --overwrite --training.epochs=0",
]

_SOUND = {"base": {"data": {"name": "digits"}}, "methods": {"kl": {"method": "kl"}, "gendd": {}}}
_COMPARISONS = {
    "no methods": {"methods": {}},
    "methods of a list": {"methods": ["kl"]},
    "methods of text": {"methods": "kl"},
    "a method of text": {"methods": {"kl": "x"}},
    "a method of a list": {"methods": {"kl": [1]}},
    "an unknown method": {"methods": {"mine": {"method": "klx"}}},
    "a method by another's name": {"methods": {"kd": {"method": "kl"}}},
    "a name with a slash": {"methods": {"a/b": {}}},
    "a method of a file": {"methods": {"own": {"method": "own.py:Own"}}},
    "a label of a number": {"methods": {"kl": {"method": "kl", "label": 5}}},
    "a rate of text": {"methods": {"kl": {"method": "kl", "rates": ["fast"]}}},
    "an unknown setting": {"methods": {"kl": {"method": "kl", "training.lrr": 1}}},
    "a setting out of range": {"methods": {"kl": {"method": "kl", "training.lr": -1}}},
    "a setting of NaN": {"methods": {"kl": {"method": "kl", "training.weight_decay": float("nan")}}},
    "an unknown key": {"method": {"kl": {}}},
    "a number for a key": {1: 2},
    "a base of text": {"base": "digits"},
    "a base of an unknown section": {"base": {"dato": {}}},
    "a base with a seed": {"base": {"seed": 3}},
    "a base with baselines": {"base": {"baselines": []}},
    "a base that extends nothing": {"base": {"extends": "nothing"}},
    "data of text": {"data": "digits"},
    "data of a list": {"data": ["digits"]},
    "unknown data": {"data": {"one": {"data.name": "digit"}}},
    "pairs of a list": {"pairs": [1]},
    "a pair of text": {"pairs": {"a": "x"}},
    "seeds of text": {"seeds": "many"},
    "seeds of a number": {"seeds": 3},
    "no seeds": {"seeds": []},
    "a seed below 0": {"seeds": [-1]},
    "a seed of text": {"seeds": ["a"]},
    "a seed twice": {"seeds": [1, 1]},
    "a seed of 2^64": {"seeds": [2**64]},
    "rates of text": {"rates": "fast"},
    "no rates": {"rates": []},
    "a rate of 0": {"rates": [0]},
    "a rate below 0": {"rates": [-1]},
    "a rate of NaN": {"rates": [float("nan")]},
    "an infinite rate": {"rates": [float("inf")]},
    "a rate twice": {"rates": [0.1, 0.1]},
    "a rate of a section": {"rates": {"a": 1}},
    "a budget of a number": {"budget": 5},
    "a budget of two": {"budget": {"epochs": 1, "steps": 5}},
    "a budget of nothing": {"budget": {}},
    "an unknown budget": {"budget": {"hours": 5}},
    "a budget of 0": {"budget": {"epochs": 0}},
    "a budget of half an epoch": {"budget": {"epochs": 0.5}},
    "a budget of text": {"budget": {"seconds": "long"}},
    "a budget without end": {"budget": {"epochs": float("inf")}},
    "a budget of NaN": {"budget": {"seconds": float("nan")}},
    "an unknown reference": {"reference": "kd"},
    "a reference of a list": {"reference": ["kl"]},
    "share_teacher of text": {"share_teacher": "yes please"},
    "share_teacher_gb of text": {"share_teacher_gb": "all"},
    "share_teacher_gb below 0": {"share_teacher_gb": -1},
    "a name of a slash": {"name": "a/b"},
    "a name of a list": {"name": [1]},
    "a variable that is not set": {"base": {"data": {"path": "${NOTHING_OF_THIS_NAME}"}}},
}


def cases() -> Iterator[Case]:
    for number, words in enumerate(_WORDS):

        def called(place: Place, words: str = words) -> Made:
            stands = {"RUN": place.run, "IMAGES": place.images, "OUT": place.out}
            found = words
            for name, path in stands.items():
                found = found.replace(name, str(path))
            return found.split()

        command = words.split()[0]
        quick = command in ("methods", "models", "recipes", "predict", "export") and number % 3 == 0
        yield Case("commands", words, called, quick and "int8" not in words and "--steps" not in words)
    for number, (name, values) in enumerate(_COMPARISONS.items()):

        def compared(place: Place, values: dict[str, object] = values) -> Made:  # type: ignore[assignment]
            file = place.write("plan.yaml", yaml.safe_dump({**_SOUND, **values}))
            return ["compare", file, "--out", str(place.folder / "out"), "--dry-run"]

        yield Case("comparisons", name, compared, quick=number % 9 == 0)
