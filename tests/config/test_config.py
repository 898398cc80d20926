from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from gendd.config import (
    DataConfig,
    EvaluationConfig,
    GenDDConfig,
    ModelConfig,
    ReadoutConfig,
    RunConfig,
    TrainingConfig,
    check_keys,
    dump,
    from_dict,
    keys,
    load_config,
    one_line,
    read_yaml,
    to_dict,
    with_settings,
)
from gendd.errors import UserError
from gendd.methods import KDConfig

CHANGED: dict[str, Any] = {
    "method": "kd",
    "baselines": ["kl", "supervised"],
    "teacher": {"name": "timm/resnet18", "mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]},
    "data": {"name": "folder", "path": "somewhere", "crop_scale": [0.6, 1.0], "workers": 0},
    "gendd": {"contraction": 0.9, "centres": "means", "token_width": 32},
    "kd": {"temperature": 2.0},
    "training": {
        "beta2": [0.9, 0.95],
        "milestones": [3, 5],
        "loggers": [],
        "clip_grad_norm": 1.0,
        "ema": 0.99,
        "schedule": "step",
    },
    "readout": {"name": "sample", "guidance": 2.0},
    "seed": 7,
    "out": "runs/é",
}


def refused(values: dict[str, Any], section: type[Any] = RunConfig) -> str:
    """The message of the error; always one line."""
    with pytest.raises(UserError) as error:
        from_dict(values, section)
    message = str(error.value)
    assert "\n" not in message
    return message


# --- there and back ---


def test_defaults_come_from_nothing() -> None:
    assert from_dict({}, RunConfig) == RunConfig()
    assert from_dict({}, GenDDConfig) == GenDDConfig()


def test_only_what_is_given_changes() -> None:
    config = from_dict(CHANGED, RunConfig)
    assert (config.method, config.seed, config.baselines) == ("kd", 7, ["kl", "supervised"])
    assert config.gendd == GenDDConfig(contraction=0.9, centres="means", token_width=32)
    assert config.training.beta2 == (0.9, 0.95) and config.data.crop_scale == (0.6, 1.0)
    assert config.settings_of("kd") == KDConfig(2.0, 0.9) and config.readout == ReadoutConfig(
        "sample", guidance=2.0
    )
    assert config.teacher.name == "timm/resnet18" and config.student == ModelConfig()


@pytest.mark.parametrize("values", [{}, CHANGED])
def test_dictionaries_and_yaml_keep_everything(values: dict[str, Any], tmp_path: Path) -> None:
    config = from_dict(values, RunConfig)
    assert from_dict(to_dict(config), RunConfig) == config
    text = dump(config)
    assert yaml.safe_load(text) == to_dict(config)
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path) == config


def test_the_dump_resolves_every_key() -> None:
    def leaves(values: dict[str, Any], prefix: str = "") -> list[str]:
        found = []
        for key, value in values.items():
            found.append(prefix + key)
            if isinstance(value, dict):
                found += leaves(value, f"{prefix}{key}.")
        return found

    assert leaves(yaml.safe_load(dump(RunConfig()))) == keys()


def test_plain_values_hold_no_tuples_and_share_nothing() -> None:
    config = RunConfig()
    plain = to_dict(config)
    assert plain["training"]["beta2"] == [0.95, 0.999] and isinstance(plain["training"]["beta2"], list)
    plain["training"]["loggers"].append("wandb")
    assert config.training.loggers == ["csv", "tensorboard"]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"training": {"lr": -1}}, "training.lr: expected a positive number, got -1.0."),
        ({"teacher_training": {"lr": -1}}, "teacher_training.lr: expected a positive number, got -1.0."),
        ({"teacher": {"classes": 0}}, "teacher.classes: expected a positive integer or null, got 0."),
        ({"student": {"std": [0.0]}}, "student.std: expected positive numbers, got [0.0]."),
        ({"data": {"batch_size": 0}}, "data.batch_size: expected a positive integer or null, got 0."),
    ],
)
def test_a_range_is_told_with_the_section_it_is_of(values: dict[str, Any], message: str) -> None:
    assert refused(values) == message


def test_a_type_of_a_method_s_setting_is_told_in_words() -> None:
    error = ValueError('Parser key "kd.weight": no. Got value: {}')
    assert one_line(error) == "kd.weight: expected number, got {}."


def test_configurations_share_nothing() -> None:
    first = from_dict({}, RunConfig)
    first.baselines.append("kl")
    first.training.loggers.append("wandb")
    first.training.milestones.append(3)
    first.data.batch_size = 5
    assert from_dict({}, RunConfig) == RunConfig()


def test_sections_have_their_own_defaults() -> None:
    first, second = RunConfig(), RunConfig()
    first.training.milestones.append(1)
    assert second.training.milestones == [] and first.teacher is not first.student
    assert first.training is not first.teacher_training


# --- keys ---


def test_keys_are_complete() -> None:
    sections = {
        "teacher": ModelConfig,
        "student": ModelConfig,
        "data": DataConfig,
        "gendd": GenDDConfig,
        "training": TrainingConfig,
        "teacher_training": TrainingConfig,
        "readout": ReadoutConfig,
        "evaluation": EvaluationConfig,
    }
    wanted = {entry.name for entry in dataclasses.fields(RunConfig)} - {"settings"}
    for name, section in sections.items():
        wanted |= {f"{name}.{entry.name}" for entry in dataclasses.fields(section)}
    assert set(keys()) == wanted and len(keys()) == len(wanted)
    assert keys(KDConfig, "kd.") == ["kd.temperature", "kd.weight"]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"trainig": {}}, "Unknown config key 'trainig'. Did you mean 'training'?"),
        ({"training": {"epoch": 3}}, "Unknown config key 'training.epoch'. Did you mean 'training.epochs'?"),
        (
            {"gendd": {"contractoin": 0.1}},
            "Unknown config key 'gendd.contractoin'. Did you mean 'gendd.contraction'?",
        ),
        ({"gendd": 3}, "gendd: expected a section (key: value lines), got 3."),
        ({"gendd": None}, "gendd: expected a section (key: value lines), got None."),
    ],
)
def test_an_unknown_key_names_its_path_and_the_nearest(values: dict[str, Any], message: str) -> None:
    assert refused(values) == message
    with pytest.raises(UserError):
        check_keys(values)


def test_a_key_that_is_no_text_is_unknown() -> None:
    assert refused({"gendd": {1: 2}}).startswith("Unknown config key 'gendd.1'.")


# --- types ---


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("training.lr", "fast", "number"),
        ("training.epochs", 1.5, "integer or null"),
        ("seed", True, "integer"),
        ("seed", None, "integer"),
        ("gendd.token_width", None, "integer"),
        ("data.labels", "maybe", "true or false"),
        ("data.path", 5, "text or null"),
        ("data.name", None, "text"),
        ("training.ema", "no", "number or null"),
        ("training.schedule", "cosin", "one of cosine, step, constant"),
        ("training.beta2", [0.9], "[number, number]"),
        ("data.crop_scale", "big", "[number, number]"),
        ("training.loggers", ["tb"], "a list of one of csv, tensorboard, wandb"),
        ("training.milestones", ["a"], "a list of integers"),
        ("student.mean", "x", "a list of numbers or null"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_in_words(key: str, value: Any, expected: str) -> None:
    values: dict[str, Any] = {}
    *sections, last = key.split(".")
    inner = values
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[last] = value
    came = "null" if value is None else value[0] if isinstance(value, list) and len(value) == 1 else value
    message = refused(values)
    assert message.startswith(f"{key}: expected {expected}, got ")
    assert str(came) in message


def test_null_is_taken_where_it_means_something() -> None:
    values = {"training": {"ema": None, "clip_grad_norm": None}, "data": {"workers": None}, "out": None}
    assert from_dict(values, RunConfig) == RunConfig()


def test_an_integer_is_a_number() -> None:
    assert from_dict({"training": {"lr": 1}}, RunConfig).training.lr == 1


def test_other_errors_keep_their_words_on_one_line() -> None:
    assert one_line(ValueError("two\n  lines ")) == "two lines"


# --- ranges ---


@pytest.mark.parametrize(
    "section, key, low, high",
    [
        (DataConfig, "data.validation", [0.0, 0.99], [-0.1, 1.0, float("nan")]),
        (DataConfig, "data.batch_size", [1], [0, -1]),
        (DataConfig, "data.train_images", [None, 1], [0]),
        (DataConfig, "data.image_size", [None, 4], [3]),
        (DataConfig, "data.workers", [None, 0], [-1]),
        (DataConfig, "data.imbalance", [None, 1.0, 100.0], [0.99, 0.0, -1.0, float("nan")]),
        (DataConfig, "data.max_corrupt", [0.0, 0.99], [-0.1, 1.0, float("nan")]),
        (DataConfig, "data.shot_thresholds", [None, (1, 1), (20, 100)], [(0, 1), (3, 2)]),
        (
            DataConfig,
            "data.crop_scale",
            [(1.0, 1.0), (0.1, 0.2)],
            [(0.0, 1.0), (0.5, 0.2), (0.5, 1.1)],
        ),
        (DataConfig, "data.mixup", [0.0, 2.0], [-0.1, float("nan")]),
        (DataConfig, "data.cutmix", [0.0, 2.0], [-0.1]),
        (DataConfig, "data.color_jitter", [0.0, 1.5], [-0.1]),
        (DataConfig, "data.mixup_prob", [0.0, 1.0], [-0.1, 1.1]),
        (DataConfig, "data.mixup_switch_prob", [0.0, 1.0], [-0.1, 1.1]),
        (DataConfig, "data.erase_prob", [0.0, 1.0], [-0.1, 1.1]),
        (DataConfig, "data.label_smoothing", [0.0, 0.9], [-0.1, 1.0]),
        (
            DataConfig,
            "data.randaugment",
            [None, "rand", "rand-m7-n2-mstd0.5", "rand-m9-mstd101-inc1-p0.3-mmax10", "rand-tweights"],
            ["", "m7-n2", "rand-7", "rand-m7.5", "rand-n0", "rand-m7-x2", "augmix-m5", "rand-inc2"],
        ),
        (ModelConfig, "std", [None, [0.1, 2.0]], [[0.0], [1.0, -1.0]]),
        (ModelConfig, "classes", [None, 1], [0, -1]),
        (GenDDConfig, "gendd.contraction", [0.0, 1.0], [-0.1, 1.1]),
        (GenDDConfig, "gendd.alpha", [0.0, 1.0], [-0.1, 1.1]),
        (GenDDConfig, "gendd.mixup", [0.0, 5.0], [-1.0]),
        (GenDDConfig, "gendd.condition_dropout", [0.0, 0.9], [-0.1, 1.0]),
        (GenDDConfig, "gendd.token_width", [1], [0]),
        (GenDDConfig, "gendd.repeats", [1, None], [0]),
        (GenDDConfig, "gendd.head_width", [1], [0]),
        (GenDDConfig, "gendd.head_depth", [1], [0]),
        (GenDDConfig, "gendd.timesteps", [2], [1]),
        (KDConfig, "kd.temperature", [0.1], [0.0, -1.0]),
        (KDConfig, "kd.weight", [0.0, 1.0], [-0.1, 1.1]),
        (TrainingConfig, "training.epochs", [1], [0]),
        (TrainingConfig, "training.lr", [1e-9], [0.0, -1.0, float("nan")]),
        (TrainingConfig, "training.weight_decay", [0.0], [-0.1]),
        (TrainingConfig, "training.beta1", [0.0, 0.99], [-0.1, 1.0]),
        (TrainingConfig, "training.beta2", [(0.0, 0.99)], [(0.9, 1.0), (-0.1, 0.5)]),
        (TrainingConfig, "training.warmup_epochs", [None, 0.0, 0.5], [-0.1, 30.0]),
        (TrainingConfig, "training.ema", [None, 0.5], [0.0, 1.0]),
        (TrainingConfig, "training.momentum", [0.0, 0.99], [-0.1, 1.0]),
        (TrainingConfig, "training.gamma", [1e-3, 1.0], [0.0, 1.1]),
        (TrainingConfig, "training.accumulate", [1, 8], [0]),
        (TrainingConfig, "training.stage1_epochs", [0, 3], [-1]),
        (TrainingConfig, "training.checkpoint_every", [1], [0]),
        (ReadoutConfig, "readout.steps", [1], [0]),
        (ReadoutConfig, "readout.num_samples", [1], [0]),
        (ReadoutConfig, "readout.temperature", [0.0], [-0.1]),
    ],
)
def test_ranges(section: type[Any], key: str, low: list[Any], high: list[Any]) -> None:
    name = key.split(".")[-1]
    for value in low:
        assert getattr(section(**{name: value}), name) == value
    for value in high:
        with pytest.raises(UserError) as error:
            section(**{name: value})
        message = str(error.value)
        assert message.startswith(f"{key}: expected ") and message.endswith(f", got {value!r}.")


def test_a_range_is_checked_on_loading_too() -> None:
    assert refused({"gendd": {"head_depth": 10**9}}) == (
        "gendd.head_depth: expected a positive integer up to 100, got 1000000000."
    )
    expected = "gendd.token_width: expected a positive integer, got 0."
    assert refused({"gendd": {"token_width": 0}}) == refused({"token_width": 0}, GenDDConfig) == expected
    expected = "gendd.repeats: expected a positive integer or null, got 0."
    assert refused({"gendd": {"repeats": 0}}) == refused({"repeats": 0}, GenDDConfig) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite(value: float) -> None:
    for key, given in (("mixup", value), ("time_power", value)):
        assert refused({"gendd": {key: given}}).startswith(f"gendd.{key}: expected a finite number, got ")
    for values in (
        {"readout": {"guidance": value}},
        {"method": "kd", "kd": {"temperature": value}},
        {"training": {"beta2": [0.5, value]}},
        {"student": {"mean": [value]}},
    ):
        assert "expected a finite number, got" in refused(values)
    with pytest.raises(UserError, match=r"readout\.guidance: expected a finite number"):
        ReadoutConfig(guidance=value)


@pytest.mark.parametrize("value", [2**31, -(2**31), 10**30])
def test_integers_are_small_enough_to_count_with(value: int) -> None:
    for values in ({"training": {"epochs": value}}, {"data": {"shot_thresholds": [1, value]}}):
        assert "expected an integer below 2,147,483,648, got" in refused(values)
    with pytest.raises(UserError, match="expected an integer below"):
        TrainingConfig(epochs=value)
    assert from_dict({"seed": 2**63 - 1, "data": {"split_seed": 2**40}}, RunConfig).seed == 2**63 - 1


@pytest.mark.parametrize(
    "section, values",
    [
        (TrainingConfig, {"lr": "fast"}),
        (TrainingConfig, {"beta2": 0.9}),
        (DataConfig, {"crop_scale": (1.0,)}),
        (GenDDConfig, {"token_width": None}),
        (RunConfig, {"seed": "x"}),
    ],
)
def test_a_value_of_another_type_is_refused_in_python_too(section: type[Any], values: dict[str, Any]) -> None:
    ((key, value),) = values.items()
    with pytest.raises(UserError) as error:
        section(**values)
    assert f"{key}: expected " in str(error.value) and str(error.value).endswith(f"got {value!r}.")


@pytest.mark.parametrize("text", ["a\0b", "caf\ud800", "\udfff/x"])
def test_text_is_what_a_file_may_be_called(text: str) -> None:
    for values in ({"data": {"path": text}}, {"student": {"weights": text}}, {"baselines": [text]}):
        assert "expected text of characters that a file's name can have, got" in refused(values)
    escaped = os.fsdecode(b"caf\xe9")  # of a file system that is not UTF-8
    assert from_dict({"data": {"path": escaped}}, RunConfig).data.path == escaped


def test_sampling_steps_are_those_of_the_schedule_at_most() -> None:
    values = {"readout": {"steps": 21}, "gendd": {"timesteps": 20}}
    assert refused(values) == "readout.steps: expected an integer up to gendd.timesteps, 20, got 21."
    values["readout"]["steps"] = 20
    assert from_dict(values, RunConfig).readout.steps == 20


@pytest.mark.parametrize(
    "text, reason",
    [
        ("data: &a {name: *a}\n", "recursive"),
        (
            "a: &a [[1]]\n" + "".join(f"{n}: &n{n} [*{'a' if n == 0 else f'n{n - 1}'}]\n" for n in range(30)),
            "recursive",
        ),
        ("seed: 2001-99-99\n", "month"),
        ("a: " + "[" * 2000, "nested too deeply"),
    ],
)
def test_a_file_that_leads_nowhere(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=reason):
        load_config(tmp_path / "config.yaml")


def test_the_student_s_classes_follow() -> None:
    assert refused({"student": {"classes": 3}}) == (
        "student.classes: expected null, as the student's classes follow from the data and the teacher, "
        "got 3."
    )
    assert from_dict({"teacher": {"classes": 3}}, RunConfig).teacher.classes == 3


def test_a_readout_is_not_fitted_to_labels_that_may_not_be_seen() -> None:
    assert refused({"gendd": {"refit": "labels"}, "data": {"labels": False}}) == (
        "gendd.refit: expected none, auto, teacher or mean where data.labels is false, got 'labels'."
    )


# --- files ---


def test_a_file_holds_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\ngendd:\n  mixup: 1.0\n")
    assert read_yaml(path) == {"seed": 3, "gendd": {"mixup": 1.0}}
    assert load_config(path) == RunConfig(seed=3, gendd=GenDDConfig(mixup=1.0))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"- a\n- b\n", "expected key: value lines, got a list; see "),
        (b"", "expected key: value lines, got nothing; see "),
        (b"seed: [1\n", "expected a readable YAML file; "),
        (
            b"seed: 1\ntraining:\n  lr: 0.1\n  lr: 0.2\n",
            "expected a readable YAML file; line 4 repeats the key 'lr'; leave one out.",
        ),
        (b"\xff\xfe\x00", "expected a readable YAML file; "),
    ],
)
def test_a_file_that_is_no_config(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(error.value).startswith(f"Config {str(path)!r}: {message}")
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml': expected a readable YAML file; .*No such file"):
        load_config(tmp_path / "none.yaml")


def test_a_file_with_an_unknown_key(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data:\n  batchsize: 3\n")
    with pytest.raises(UserError, match=r"'data\.batchsize'\. Did you mean 'data\.batch_size'\?"):
        read_yaml(path)


@pytest.mark.parametrize("key, value", [("method", "gend"), ("baselines", ["gend"])])
def test_a_method_is_known_by_name_or_by_its_file(key: str, value: Any) -> None:
    message = refused({key: value})
    assert message.startswith(f"{key}: expected one of gendd, ")
    assert message.endswith("or path/to/file.py:CLASS, got 'gend'. Did you mean 'gendd'?")
    assert from_dict({"method": "own.py:Mine"}, RunConfig).method == "own.py:Mine"  # read when it is built


def test_settings_of_other_methods_are_sections_too() -> None:
    config = from_dict({"kd": {"temperature": 2}}, RunConfig)
    assert config.settings_of("kd") == KDConfig(2.0, 0.9) and to_dict(config)["kd"] == {
        "temperature": 2.0,
        "weight": 0.9,
    }
    assert RunConfig().settings_of("kd") == KDConfig() and "kd" not in to_dict(RunConfig())
    # in full for the methods that are used, and for no others
    assert with_settings(config).settings == {}
    assert with_settings(RunConfig(baselines=["kd", "kl"])).settings == {"kd": KDConfig()}
    assert refused({"kd": {"temperatur": 2}}) == (
        "Unknown config key 'kd.temperatur'. Did you mean 'kd.temperature'?"
    )
    assert refused({"kd": {"temperature": "warm"}}) == "kd.temperature: expected number, got warm."
    assert refused({"kd": {"weight": 2}}) == "kd.weight: expected a number in [0, 1], got 2.0."


def test_sections_parsed_before_are_separate_and_of_their_own_types() -> None:
    first, second = (from_dict({"training": {"lr": 0.5}}, RunConfig) for _ in range(2))
    assert first.training == second.training and first.training is not second.training
    first.training.lr = 9.0
    assert from_dict({"training": {"lr": 0.5}}, RunConfig).training.lr == 0.5
    assert from_dict({"gendd": {"contraction": 1}}, RunConfig).gendd.contraction == 1
    for wrong in (True, "1x"):
        with pytest.raises(UserError, match=r"gendd\.contraction"):
            from_dict({"gendd": {"contraction": wrong}}, RunConfig)
