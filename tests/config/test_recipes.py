"""Every recipe: its content, that it resolves to the published settings, that its networks can be built.

The tables below were written from the published settings, not from the recipes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import gendd.recipes
from gendd.cli import parse_run
from gendd.config import (
    RunConfig,
    dump,
    extended,
    from_dict,
    load_config,
    merge,
    read_mapping,
    read_yaml,
    to_dict,
)
from gendd.errors import UserError
from gendd.models import create_backbone
from gendd.recipes import is_base, recipe_path, recipes

# stated even if equal to the defaults: what readers look for first, and the sampler's settings
STATED = {"method", "data.name", "data.validation", "readout.steps", "readout.num_samples"}
# applied on top of others; states every setting of the method, so that changed defaults don't affect it
LAYER = "published"
# also applied on top of others, replacing their settings
LAYERS = {LAYER, "linear_probe"}
NAMES = sorted(name for name in recipes() if not is_base(name))
BASES = sorted(set(recipes()) - set(NAMES))

METHOD = {
    "gendd.contraction": 0.9,
    "gendd.contract": "all",
    "gendd.alpha": 1.0,
    "gendd.centres": "classifier",
    "gendd.centre_scale": "none",
    "gendd.mixup": 1.0,
    "gendd.token_width": 64,
    "gendd.condition_dropout": 0.2,
    "gendd.prediction": "epsilon",
    "gendd.learned_variance": True,
    "gendd.standardise": False,
    "gendd.time_power": 1.0,
    "gendd.head_width": 1024,
    "gendd.head_depth": 3,
    "gendd.zero_init": True,
    "gendd.timesteps": 1000,
    "gendd.map_weight": 0.0,
    "gendd.stage_weight": 0.0,
    "gendd.projector": 0,
    "gendd.residual": False,
    "gendd.label_weight": 0.0,
    "training.optimizer": "adamw",
    "training.beta1": 0.9,
    "training.decay_all": True,
    "readout.name": "sample",
    "readout.sampler": "ddpm",
    "readout.guidance": 2.0,
    "readout.num_samples": 5,
    "readout.temperature": 1.0,
    "data.validation": 0.0,
    "baselines": [],
}
NORMALISED = {
    f"{role}.{key}": value
    for role in ("teacher", "student")
    for key, value in (("mean", [0.5071, 0.4867, 0.4408]), ("std", [0.2675, 0.2565, 0.2761]))
}
# RepDistiller's train_teacher.py
CIFAR_TEACHER = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "lr": 0.05,
    "epochs": 240,
    "weight_decay": 5e-4,
    "decay_all": True,
    "schedule": "step",
    "milestones": [150, 180, 210],
    "gamma": 0.1,
    "warmup_epochs": 0.0,
}
CIFAR = {
    "data.name": "cifar100",
    **NORMALISED,
    **{f"teacher_training.{key}": value for key, value in CIFAR_TEACHER.items()},
}
CIFAR_PUBLISHED = METHOD | {
    **CIFAR,
    "data.augment": "crop-flip",
    "data.batch_size": 64,
    "gendd.repeats": 30,
    "training.stage1_epochs": 50,
    "training.stage1_lr": 3e-3,
    "training.epochs": 240,
    "training.lr": 1e-3,
    "training.weight_decay": 0.05,
    "training.beta2": [0.95, 0.999],
    "training.schedule": "step",
    "training.milestones": [150, 180, 210],
    "training.gamma": 0.1,
    "training.warmup_epochs": 50.0,
    "readout.steps": 100,
}
PAIRS = [
    ("resnet110", "resnet32", 0.9),
    ("resnet56", "resnet20", 0.9),
    ("resnet32x4", "resnet8x4", 0.7),
    ("wrn_40_2", "wrn_16_2", 0.8),
    ("wrn_40_2", "wrn_40_1", 0.8),
    ("vgg13", "vgg8", 0.7),
    ("vgg13", "resnet20", 0.9),
    ("wrn_40_2", "resnet8x4", 0.7),
    # also evaluated, λ by another pair of the teacher
    ("resnet32x4", "ShuffleV1", 0.7),
    ("resnet32x4", "ShuffleV2", 0.7),
    ("resnet32x4", "vgg8", 0.7),
    ("resnet32x4", "wrn_16_2", 0.7),
    ("wrn_40_2", "ShuffleV1", 0.7),
    ("vgg13", "MobileNetV2", 0.9),
]
LARGE = METHOD | {
    "data.image_size": 224,
    "data.augment": "resized-crop",
    "gendd.repeats": 10,
    "training.lr": 2e-3,
    "training.beta2": [0.96, 0.999],
    "training.schedule": "cosine",
    "training.min_lr": 1e-6,
    "readout.steps": 64,
}
IMAGENET = LARGE | {
    "data.name": "folder",
    "data.batch_size": 512,
    "teacher.pretrained": True,
    "training.stage1_epochs": 20,
    "training.stage1_lr": 2e-3,
}
CONVOLUTIONAL = IMAGENET | {
    "data.crop_scale": [0.6, 1.0],
    "training.epochs": 100,
    "training.weight_decay": 0.02,
}
R34_R18 = {"teacher.name": "timm/resnet34.tv_in1k", "student.name": "timm/resnet18"}
R50_MOBILENET = {"teacher.name": "timm/resnet50.tv_in1k", "student.name": "timm/mobilenetv1_100"}
BEIT = IMAGENET | {
    "student.name": "timm/resnet50",
    "gendd.mixup": 0.0,
    "data.crop_scale": [0.08, 1.0],
    "data.randaugment": "rand-m7-n2-mstd0.5",
    "data.color_jitter": 0.4,
    "data.cutmix": 1.0,
}
BEIT_SETTINGS = {
    "a1": {
        "training.epochs": 600,
        "training.weight_decay": 0.01,
        "data.mixup": 0.2,
        "data.label_smoothing": 0.1,
    },
    "a2": {
        "training.epochs": 300,
        "training.weight_decay": 0.02,
        "data.mixup": 0.1,
        "data.label_smoothing": 0.0,
    },
}
LT_TEACHER = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "lr": 0.1,
    "epochs": 100,
    "weight_decay": 5e-4,
    "decay_all": True,
    "schedule": "cosine",
    "warmup_epochs": 0.0,
}
LT = {
    "data.name": "list",
    "data.image_size": 224,
    "data.shot_thresholds": [20, 100],
    "teacher.name": "timm/resnext101_32x4d",
    **{f"teacher_training.{key}": value for key, value in LT_TEACHER.items()},
}
LT_PUBLISHED = LARGE | {
    **LT,
    "data.batch_size": 256,
    "gendd.contraction": 0.0,
    "training.epochs": 100,
    "training.weight_decay": 0.2,
}
CC3M = {
    "data.name": "webdataset",
    "data.image_size": 224,
    "data.resampled": True,
    "data.steps_per_epoch": 5500,
    "data.labels": False,
    "teacher.pretrained": True,
}
CC3M_PUBLISHED = LARGE | {
    **CC3M,
    "data.batch_size": 512,
    "gendd.contraction": 0.0,
    "training.epochs": 100,
    "training.weight_decay": 0.02,
}
KL = CC3M | {
    "method": "kl",
    "data.batch_size": 512,
    "data.augment": "resized-crop",
    "data.validation": 0.0,
    "training.optimizer": "sgd",
    "training.momentum": 0.9,
    "training.lr": 0.2,
    "training.weight_decay": 1e-4,
    "training.decay_all": True,
    "training.epochs": 100,
    "training.warmup_epochs": 10.0,
}


def beit(size: str) -> dict[str, Any]:
    return {"teacher.name": f"timm/beitv2_{size}_patch16_224.in1k_ft_in22k_in1k"}


EXPECTED: dict[str, dict[str, Any]] = {
    **{
        f"cifar100/{teacher}_{student.lower()}": CIFAR_PUBLISHED
        | {
            "teacher.name": f"cifar/{teacher}",
            "student.name": f"cifar/{student}",
            "gendd.contraction": contraction,
        }
        for teacher, student, contraction in PAIRS
    },
    "cifar100/teacher": CIFAR
    | {f"training.{key}": value for key, value in CIFAR_TEACHER.items()}
    | {
        "method": "supervised",
        "student.name": "cifar/resnet56",
        "data.batch_size": 64,
        "data.validation": 0.0,
    },
    "imagenet/resnet34_resnet18": CONVOLUTIONAL | R34_R18 | {"training.warmup_epochs": 10.0},
    "imagenet/resnet50_mobilenetv1": CONVOLUTIONAL | R50_MOBILENET | {"training.warmup_epochs": 20.0},
    **{
        f"imagenet/beitv2-{size}_resnet50_{setting}": BEIT | beit(size) | BEIT_SETTINGS[setting]
        for size in ("base", "large")
        for setting in ("a1", "a2")
    },
    **{
        f"imagenet-lt/resnext101_{student}": LT_PUBLISHED | {"student.name": f"timm/{student}"}
        for student in ("resnet50", "resnet18")
    },
    "imagenet-lt/teacher_resnext101": LT
    | {f"training.{key}": value for key, value in LT_TEACHER.items()}
    | {
        "method": "supervised",
        "student.name": "timm/resnext101_32x4d",
        "data.batch_size": 256,
        "data.validation": 0.0,
    },
    "cc3m/resnet34_resnet18": CC3M_PUBLISHED | R34_R18,
    "cc3m/resnet50_mobilenetv1": CC3M_PUBLISHED | R50_MOBILENET,
    "cc3m/kl_resnet34_resnet18": KL | R34_R18,
    "cc3m/kl_resnet50_mobilenetv1": KL | R50_MOBILENET,
}
PRACTICAL: dict[str, dict[str, Any]] = {
    **{
        f"practical/cifar100/{teacher}_{student.lower()}": CIFAR
        | {
            "teacher.name": f"cifar/{teacher}",
            "student.name": f"cifar/{student}",
            "training.epochs": 60,
        }
        for teacher, student, _ in PAIRS
    },
    **{
        f"practical/imagenet/{name}": {
            "data.name": "folder",
            "data.image_size": 224,
            "data.batch_size": 256,
            "data.validation": 0.02,
            "teacher.pretrained": True,
            "training.epochs": 30,
            **networks,
        }
        for name, networks in {
            "resnet34_resnet18": R34_R18,
            "resnet50_mobilenetv1": R50_MOBILENET,
            "beitv2-base_resnet50": beit("base") | {"student.name": "timm/resnet50"},
            "beitv2-large_resnet50": beit("large") | {"student.name": "timm/resnet50"},
        }.items()
    },
    **{
        f"practical/imagenet-lt/resnext101_{student}": LT
        | {
            "student.name": f"timm/{student}",
            "data.batch_size": 256,
            "data.validation": 0.0,
            "training.epochs": 60,
        }
        for student in ("resnet50", "resnet18")
    },
    **{
        f"practical/cc3m/{name}": CC3M | networks | {"data.batch_size": 256, "training.epochs": 10}
        for name, networks in {"resnet34_resnet18": R34_R18, "resnet50_mobilenetv1": R50_MOBILENET}.items()
    },
}


@cache
def resolved(name: str) -> RunConfig:
    """A recipe's configuration; it is not changed."""
    return load_config(recipe_path(name))


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of nested dictionaries by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is(name: str) -> None:
    assert recipe_path(name).read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("name", ["digits", "imagenet-lt/teacher_resnext101", min(PRACTICAL)])
def test_runs_go_below_the_name_of_their_recipe(name: str) -> None:
    config, _ = parse_run("distill", ["--recipe", name])
    assert config is not None
    assert config.out == f"runs/{name}"


@pytest.mark.parametrize("name", BASES)
def test_a_base_says_what_it_is_and_that_it_is_extended(name: str) -> None:
    path = recipe_path(name)
    load_config(path)
    assert path.read_text(encoding="utf-8").startswith("# ")
    extending = [read_mapping(other).get("extends", []) for other in recipes().values()]
    assert any(name == names or name in names for names in extending)


@pytest.mark.parametrize("name", sorted(set(NAMES) - LAYERS))
def test_a_recipe_holds_only_what_differs_from_what_it_extends(name: str) -> None:
    own = read_mapping(recipe_path(name))
    below = to_dict(from_dict(extended({"extends": own.pop("extends", [])}), RunConfig))
    repeated = {key for key, value in flat(own).items() if value == flat(below)[key]}
    assert repeated <= STATED


def test_there_is_a_recipe_for_every_published_experiment_and_no_other() -> None:
    assert set(NAMES) == {"demo", "digits", *LAYERS, *EXPECTED, *PRACTICAL}


@pytest.mark.parametrize("name", sorted({**EXPECTED, **PRACTICAL}))
def test_a_recipe_resolves_to_exactly_its_settings(name: str) -> None:
    expected = flat(to_dict(RunConfig())) | (EXPECTED | PRACTICAL)[name]
    assert flat(to_dict(resolved(name))) == expected


@pytest.mark.parametrize("name", sorted(PRACTICAL))
def test_a_practical_recipe_distils_the_published_networks(name: str) -> None:
    published = name.removeprefix("practical/")
    published += "_a1" if "beitv2" in name else ""
    ours, theirs = (resolved(each) for each in (name, published))
    assert (ours.teacher, ours.student) == (theirs.teacher, theirs.student)
    assert ours.gendd == RunConfig().gendd
    assert ours.training.epochs < theirs.training.epochs


def test_the_published_setting_states_every_choice_of_the_method() -> None:
    values = yaml.safe_load(recipe_path(LAYER).read_text(encoding="utf-8"))
    assert set(to_dict(RunConfig())["gendd"]) - set(values["gendd"]) == {"probe"}
    assert values["gendd"]["repeats"] == 30 and values["gendd"]["mixup"] == 1.0
    assert values["readout"] == {
        "name": "sample",
        "sampler": "ddpm",
        "steps": 100,
        "guidance": 2.0,
        "num_samples": 5,
    }
    assert load_config(recipe_path(LAYER)).readout.temperature == 1.0
    assert not {"teacher", "student", "data"} & set(values)  # the recipe below gives them


@pytest.mark.parametrize("name", sorted(name for name in EXPECTED if "cc3m" not in name))
def test_the_linear_probe_replaces_the_optimisation_of_the_recipe_below(name: str) -> None:
    values = read_yaml(recipe_path(name))
    merge(values, read_yaml(recipe_path("linear_probe")))
    config = from_dict(values, RunConfig)
    assert (config.method, config.baselines) == ("linear_probe", [])
    training = config.training
    assert (training.optimizer, training.lr, training.momentum, training.epochs) == ("sgd", 30.0, 0.9, 100)
    assert (training.schedule, training.warmup_epochs, training.weight_decay) == ("cosine", 0.0, 0.0)
    assert (training.min_lr, training.stage1_epochs) == (0.0, 0)


@pytest.mark.parametrize(
    "name", ["demo", "digits", *(name for name in NAMES if name.startswith("cifar100/"))]
)
def test_the_cifar_networks_of_a_recipe_can_be_built(name: str) -> None:
    config = resolved(name)
    for model in (config.teacher, config.student):
        if model.name.startswith("cifar/"):
            assert create_backbone(model.name, 10).num_classes == 10


@pytest.mark.parametrize("name", ["demo", "digits"])
def test_a_small_recipe_distils_into_a_smaller_network(name: str) -> None:
    config = load_config(recipe_path(name))
    teacher, student = (
        sum(p.numel() for p in create_backbone(model.name, 10, 1).parameters())
        for model in (config.teacher, config.student)
    )
    assert student * 5 < teacher
    assert config.baselines == ["supervised", "kl"]


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^Unknown recipe 'digis'\. Did you mean 'digits'\?"):
        recipe_path("digis")


# --- extends ---


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes in the place of the shipped ones."""
    monkeypatch.setattr(gendd.recipes, "FOLDER", tmp_path)
    return tmp_path


def test_later_layers_win_and_sections_are_merged(shelf: Path) -> None:
    (shelf / "low.yaml").write_text("seed: 1\ndata: {batch_size: 8, mixup: 0.5}\n")
    (shelf / "middle.yaml").write_text("extends: low\ndata: {batch_size: 16}\n")
    (shelf / "other.yaml").write_text("seed: 2\ntraining: {milestones: [1, 2]}\n")
    (shelf / "top.yaml").write_text("extends: [middle, other]\ntraining: {milestones: [3]}\n")
    assert read_yaml(shelf / "top.yaml") == {
        "seed": 2,
        "data": {"batch_size": 16, "mixup": 0.5},
        "training": {"milestones": [3]},
    }


def test_a_file_of_the_user_extends_recipes_and_the_resolved_settings_do_not(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: digits\nseed: 5\n")
    config, _ = parse_run("distill", ["--config", str(file)])
    digits = load_config(recipe_path("digits"))
    assert config is not None
    assert (config.seed, config.out) == (5, "runs/mine")
    assert (config.teacher, config.gendd, config.baselines) == (
        digits.teacher,
        digits.gendd,
        digits.baselines,
    )
    assert "extends" not in dump(config)


def test_baselines_of_what_a_file_extends_are_left_out_where_they_need_labels(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: digits\ndata: {labels: false}\n")
    config, _ = parse_run("distill", ["--config", str(file)])
    assert config is not None and config.baselines == ["kl"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("extends: digts\n", "Unknown recipe 'digts'. Did you mean 'digits'? See: gendd recipes."),
        ("extends: 3\n", "extends: expected a recipe's name or a list of them, got 3."),
        ("extends: [digits, 3]\n", "extends: expected a recipe's name or a list of them, got ['digits', 3]."),
        ("extends: {digits: 1}\n", "extends: expected a recipe's name or a list of them, got {'digits': 1}."),
    ],
)
def test_what_can_not_be_extended(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as error:
        read_yaml(file)
    assert str(error.value) == message


def test_recipes_that_extend_themselves(shelf: Path) -> None:
    (shelf / "a.yaml").write_text("extends: b\n")
    (shelf / "b.yaml").write_text("extends: [c, a]\n")
    (shelf / "c.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError) as error:
        read_yaml(shelf / "a.yaml")
    assert str(error.value) == "extends: expected recipes that don't extend themselves, got b → a → b."


def test_two_recipes_may_extend_the_same(shelf: Path) -> None:
    (shelf / "low.yaml").write_text("seed: 1\n")
    (shelf / "a.yaml").write_text("extends: low\ndata: {batch_size: 2}\n")
    (shelf / "b.yaml").write_text("extends: [low, a]\n")
    assert read_yaml(shelf / "b.yaml") == {"seed": 1, "data": {"batch_size": 2}}
