from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gendd.cli import _merge, parse_run, recipe_path, recipes
from gendd.config import RunConfig, from_dict, load_config, read_yaml, to_dict
from gendd.errors import UserError
from gendd.models import create_backbone

# stated whatever the defaults are: what a reader looks for first, and the sampler's figures
STATED = {"method", "data.name", "data.validation", "readout.steps", "readout.num_samples"}
# laid over others; holds every setting of the method, so that it outlasts changed defaults
LAYER = "published"
# laid over others too, whose settings it replaces
LAYERS = {LAYER, "linear_probe"}


def repeated(values: dict[str, Any], defaults: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of ``values`` that say what the defaults say."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += repeated(value, defaults[key], f"{prefix}{key}.")
        elif value == defaults[key]:
            found.append(prefix + key)
    return found


@pytest.mark.parametrize("name", sorted(recipes()))
def test_a_recipe_loads_and_says_what_it_is(name: str) -> None:
    path = recipe_path(name)
    assert path.read_text(encoding="utf-8").startswith("# ")
    load_config(path)
    config, _ = parse_run("distill", ["--recipe", name])
    assert config is not None
    assert config.out == f"runs/{name.rsplit('/', 1)[-1]}"


@pytest.mark.parametrize("name", sorted(set(recipes()) - LAYERS))
def test_a_recipe_holds_only_what_differs_from_the_defaults(name: str) -> None:
    values = yaml.safe_load(recipe_path(name).read_text(encoding="utf-8"))
    assert set(repeated(values, to_dict(RunConfig()))) <= STATED


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


def test_the_linear_probe_replaces_the_optimisation_of_the_recipe_below(tmp_path: Path) -> None:
    below = tmp_path / "below.yaml"
    below.write_text(
        "baselines: [kl]\ntraining: {schedule: step, milestones: [1], warmup_epochs: 3, stage1_epochs: 2, "
        "min_lr: 0.1, weight_decay: 0.3}\n"
    )
    values: dict[str, Any] = {}
    for file in (below, recipe_path("linear_probe")):
        _merge(values, read_yaml(file))
    config = from_dict(values, RunConfig)
    assert (config.method, config.baselines) == ("linear_probe", [])
    training = config.training
    assert (training.optimizer, training.lr, training.momentum, training.epochs) == ("sgd", 30.0, 0.9, 100)
    assert (training.schedule, training.warmup_epochs, training.weight_decay) == ("cosine", 0.0, 0.0)
    assert (training.min_lr, training.stage1_epochs) == (0.0, 0)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_the_cifar_networks_of_a_recipe_can_be_built(name: str) -> None:
    config = load_config(recipe_path(name))
    for model in (config.teacher, config.student):
        if model.name.startswith("cifar/"):
            assert create_backbone(model.name, 10).num_classes == 10


def test_digits_distils_into_a_smaller_network() -> None:
    config = load_config(recipe_path("digits"))
    teacher, student = (
        sum(p.numel() for p in create_backbone(model.name, 10, 1).parameters())
        for model in (config.teacher, config.student)
    )
    assert student * 5 < teacher
    assert config.baselines == ["supervised", "kl"]


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^Unknown recipe 'digis'\. Did you mean 'digits'\?"):
        recipe_path("digis")
