"""The file of a comparison: its validation, and the resulting cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Finished
from small_comparison import small

from gendd.compare.plan import Budget
from gendd.compare.reading import read_plan
from gendd.errors import UserError
from gendd.files import trusted_code

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"metods": {}}, "Unknown key 'metods'. Did you mean 'methods'?"),
        ({"budget": {"epochs": float("inf")}}, "budget.epochs: expected a positive integer, got inf."),
        ({"reference": ["kl"]}, "reference: expected one of the methods, got ['kl']."),
        (
            {"base": {"training.epoch": 1}},
            "base: Unknown config key 'training.epoch'. Did you mean 'training.epochs'?",
        ),
        (
            {"methods": {"kd": {"method": "kd", "kd.temprature": 2}}},
            "methods.kd: Unknown config key 'kd.temprature'. Did you mean 'kd.temperature'?",
        ),
        (
            {"methods": {"kd": {"method": "kd", "lable": "KD"}}},
            "methods.kd: Unknown config key 'lable'. Did you mean 'label'?",
        ),
        (
            {"pairs": {"a": {"studnt": {}}}},
            "pairs.a: Unknown config key 'studnt'. Did you mean 'student'?",
        ),
        ({"data": {"a": 3}}, "data.a: expected a section (key: value lines), got 3."),
        ({"methods": {}}, "methods: expected a section of one method or more, got {}."),
        (
            {"methods": {"a b": {}}},
            "methods: expected a name of letters, digits and any of _ . + -, got 'a b'.",
        ),
        ({"budget": {"epoch": 1}}, "Unknown key 'budget.epoch'. Did you mean 'epochs'?"),
        ({"budget": {"epochs": 1, "steps": 2}}, "budget: expected one of epochs, steps, seconds, got "),
        ({"budget": {"steps": 1.5}}, "budget.steps: expected a positive integer, got 1.5."),
        ({"seeds": []}, "seeds: expected a list of different integers from 0, got []."),
        ({"seeds": [1, 1]}, "seeds: expected a list of different integers from 0, got [1, 1]."),
        ({"rates": [0.1, -1]}, "rates: expected a list of different positive numbers, got [0.1, -1]."),
        ({"reference": "kt"}, "reference: expected one of the methods, got 'kt'. Did you mean 'kd'?"),
        ({"share_teacher": "yes"}, "share_teacher: expected true or false, got 'yes'."),
        ({"base": {"seed": 3}}, "base.seed: expected none, as seeds sets it; leave it out."),
        (
            {"base": {"training": {"epochs": 3}}},
            "base.training.epochs: expected none beside budget; leave one out.",
        ),
        (
            {"methods": {"a": {"training.lr": 1.0}}},
            "methods.a.training.lr: expected none beside rates; give rates alone.",
        ),
        (
            {"methods": {"a": {"rates": [0.1, 0.1]}}},
            "methods.a.rates: expected a list of different positive numbers, got [0.1, 0.1].",
        ),
        (
            {"methods": {"kd": {}}, "reference": None},
            "methods.kd: expected method 'kd' by its name, got 'gendd'; add 'method: kd', or ",
        ),
        (
            {"methods": {"kd": {"method": "kd", "training.optimizer": "adamv"}}},
            "methods.kd: training.optimizer: expected one of ",
        ),
        (
            {"rates": [0.1, 0.2], "data": {"a": {"data.validation": 0}}},
            "methods.kd: expected data.validation above 0 to choose between 2 learning rates, got 0; ",
        ),
        ({"base": {"data.path": "${GENDD_NOWHERE}/a"}}, "base.data.path: expected the environment variable "),
    ],
)
def test_a_mistake_is_told_by_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        _ = read_plan(small(**changes)).groups
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("data.name", "digit", "got 'digit'. Did you mean 'digits'?"),
        ("student.name", "cifar/resnet9", "Unknown model 'cifar/resnet9'"),
        ("teacher.name", "nothing", "Teacher: Unknown model 'nothing'"),
    ],
)
def test_names_are_known_before_anything_is_run(key: str, value: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        _ = read_plan(small(pairs={"p": {key: value}})).groups
    assert message in str(caught.value)


def test_a_file_that_is_no_mapping_or_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n", encoding="utf-8")
    with pytest.raises(UserError, match="expected key: value lines, got a list"):
        read_plan(path)
    with pytest.raises(UserError, match="expected a readable YAML file"):
        read_plan(tmp_path / "none.yaml")


def test_cells_are_methods_by_pairs_by_data_by_rates_with_dotted_and_nested_settings(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    file = small(
        pairs={"small": {}, "wide": {"student": {"name": "cifar/resnet8"}}},
        data={"digits": {"data.name": "digits"}, "none": {"data": {"labels": False}}},
        methods={
            "kl": {"method": "kl", "rates": ["1e-3", 0.5]},
            "other": {"label": "Other", "gendd.mixup": 0.5},
        },
        seeds=[3, 4],
        reference=None,
        budget={"steps": 100},
    )
    path.write_text(yaml.safe_dump(file, sort_keys=False), encoding="utf-8")
    plan = read_plan(path)
    assert plan.name == "mine"
    assert plan.budget == Budget("steps", 100)
    names = [(group.data, group.pair, group.method) for group in plan.groups]
    assert names == [
        (data, pair, method)
        for data in ("digits", "none")
        for pair in ("small", "wide")
        for method in ("kl", "other")
    ]
    kl, other = plan.groups[2:4]
    assert (kl.rates, other.rates) == ((0.001, 0.5), (0.02,))
    assert (kl.label, other.label) == ("KL distillation", "Other")
    cell = plan.cell(other, 4, 0.02, 7)
    assert cell.config.student.name == "cifar/resnet8"
    assert cell.config.gendd.mixup == 0.5
    assert (cell.config.seed, cell.config.training.lr, cell.config.training.epochs) == (4, 0.02, 7)
    assert cell.config.data.train_images == 96
    assert cell.config.baselines == []
    assert cell.config.training.loggers == ["csv"]
    assert cell.key == f"digits-wide-other-lr0.02-seed4-{cell.digest[:8]}"
    assert plan.groups[4].config.data.labels is False
    digests = {plan.cell(group, seed, 0.1, 1).digest for group in plan.groups for seed in (0, 1)}
    assert len(digests) == 16


def test_a_recipe_is_extended_and_a_method_is_labelled_by_the_registry_where_it_stands_alone() -> None:
    file = small(
        base={"extends": "digits", "training": {"weight_decay": 0.5}},
        methods={"gendd": {}, "unlabelled": {"data.labels": False}, "soft": {"method": "kd"}},
        reference="soft",
    )
    groups = {group.method: group for group in read_plan(file).groups}
    assert groups["gendd"].config.teacher.name == "cifar/resnet14"
    assert groups["gendd"].config.training.weight_decay == 0.5
    assert {name: group.label for name, group in groups.items()} == {
        "gendd": "GenDD",
        "unlabelled": "unlabelled",
        "soft": "KD",
    }


def test_networks_may_be_folders_of_runs(digits_run: Finished) -> None:
    folder = str(digits_run.folder)
    base = {**small()["base"], "teacher.name": folder, "student.name": folder}
    config = read_plan(small(base=base)).groups[0].config
    for network in (config.teacher, config.student):
        assert (network.name, network.weights) == ("cifar/resnet8x0.25", folder)


def test_variables_are_expanded_and_the_digest_does_not_depend_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = small(base={**small()["base"], "teacher.weights": "${GENDD_DATA}/teacher.safetensors"})
    digests = []
    for place in ("/here", "/there"):
        monkeypatch.setenv("GENDD_DATA", place)
        plan = read_plan(file)
        cell = plan.cell(plan.groups[0], 0, 0.1, 1)
        assert cell.config.teacher.weights == f"{place}/teacher.safetensors"
        digests.append(cell.digest)
    assert digests[0] == digests[1]
    plan = read_plan(small(base={**small()["base"], "teacher.weights": "/here/teacher.safetensors"}))
    assert plan.cell(plan.groups[0], 0, 0.1, 1).digest != digests[0]


def test_a_method_of_ones_own_has_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(
        "from dataclasses import dataclass\n"
        "import gendd\n"
        "@dataclass\n"
        "class Settings:\n"
        "    weight: float = 1.0\n"
        "class Own(gendd.Method):\n"
        "    name, label, Settings = 'own', 'My own', Settings\n",
        encoding="utf-8",
    )
    plan = read_plan(small(methods={"mine": {"method": "own.py:Own", "own.weight": 3.0}}, reference="mine"))
    (group,) = plan.groups
    assert group.label == "My own"
    assert group.config.settings_of("own.py:Own").weight == 3.0
    with pytest.raises(UserError, match=r"methods\.mine: Unknown config key 'own\.wait'\. Did you mean 'own"):
        _ = read_plan(small(methods={"mine": {"method": "own.py:Own", "own.wait": 3.0}}, reference="mine"))


def test_epochs_that_do_not_fit_are_told_of_the_method() -> None:
    plan = read_plan(small(methods={"a": {"training.warmup_epochs": 1.5}}, reference=None, budget=None))
    with pytest.raises(UserError, match=r"methods\.a: training\.warmup_epochs: expected null or a number in"):
        plan.cell(plan.groups[0], 0, 0.1, 1)


def test_settings_of_gendd_are_no_part_of_what_other_methods_depend_on() -> None:
    def digests(**base: Any) -> list[str]:
        plan = read_plan(
            {"base": {"data": {"name": "digits"}, **base}, "methods": {"kd": {"method": "kd"}, "gendd": {}}}
        )
        return [plan.cell(group, 0, 0.01).digest for group in plan.groups]

    plain, changed = digests(), digests(gendd={"repeats": 3})
    assert plain[0] == changed[0] and plain[1] != changed[1]


def test_a_shared_teacher_cache_is_not_asked_of_a_method_without_teacher() -> None:
    methods = {"supervised": {"method": "supervised"}, "kd": {"method": "kd"}}
    base = {"data": {"name": "digits"}, "training.cache_teacher": 2}
    groups = read_plan({"base": base, "methods": methods}).groups
    assert [group.config.training.cache_teacher for group in groups] == [0, 2]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "compare").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_files_of_the_benchmarks_can_be_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DATA", "data")
    with trusted_code():
        plan = read_plan(path)
        assert plan.groups and plan.reference in {group.method for group in plan.groups}
