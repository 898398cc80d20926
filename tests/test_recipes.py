from __future__ import annotations

import pytest
import yaml

from gendd.cli import parse_run, recipe_path, recipes
from gendd.config import RunConfig, load_config, to_dict
from gendd.errors import UserError
from gendd.models import create_backbone


def defaults() -> dict[str, object]:
    return to_dict(RunConfig())


@pytest.mark.parametrize("name", sorted(recipes()))
def test_a_recipe_loads_and_says_what_it_is(name: str) -> None:
    path = recipe_path(name)
    assert path.read_text(encoding="utf-8").startswith("# ")
    load_config(path)
    config, _ = parse_run("distill", ["--recipe", name])
    assert config is not None
    assert config.out == f"runs/{name.rsplit('/', 1)[-1]}"


@pytest.mark.parametrize("name", sorted(recipes()))
def test_a_recipe_holds_only_what_differs_from_the_defaults(name: str) -> None:
    def same(values: dict[str, object], default: dict[str, object], prefix: str = "") -> list[str]:
        found = []
        for key, value in values.items():
            other = default[key]
            if isinstance(value, dict):
                assert isinstance(other, dict)
                found += same(value, other, f"{prefix}{key}.")
            elif value == other and prefix + key not in STATED:
                found.append(prefix + key)
        return found

    assert same(yaml.safe_load(recipe_path(name).read_text()), defaults()) == []


# what a reader of a recipe looks for first, and figures of the published setting
STATED = {"method", "data.name", "data.validation", "readout.steps", "readout.num_samples"}


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
