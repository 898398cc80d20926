from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import READOUTS, bare, make_student, one_line, rgb_images, seeded
from safetensors.torch import load_file, save_file
from torch import nn

from gendd.config import ReadoutConfig, ReadoutName
from gendd.deploy import deploy
from gendd.errors import UserError
from gendd.student import Student, load
from gendd.student.readout import mean_logits


def change(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, **values}), encoding="utf-8")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return make_student().save(tmp_path / "run" / "student")


@pytest.mark.parametrize("generative, name", [(True, "mean"), (False, "linear")])
def test_where_no_run_picks_a_readout_it_is_the_mean_if_there_is_one(generative: bool, name: str) -> None:
    student = make_student(generative=generative, readout=ReadoutConfig(steps=3))
    assert (student.readout, student.settings.steps) == (name, 3)


@pytest.mark.parametrize("name", READOUTS)
def test_a_loaded_student_gives_the_same_logits_bit_for_bit(name: ReadoutName, tmp_path: Path) -> None:
    student = make_student(readout=ReadoutConfig(name, steps=3, guidance=2.0, num_samples=2, temperature=0.5))
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
    back = load(student.save(tmp_path))
    assert back.readout == name and back.settings == student.settings
    assert back.info == student.info
    assert not any(module.training for module in back.modules())
    features = student.features(rgb_images())
    assert torch.equal(back.features(rgb_images()), features)
    expected = student.logits(features, generator=seeded())
    assert expected.shape == (3, 5)
    assert torch.equal(back.logits(features, generator=seeded()), expected)
    if name != "sample":
        assert torch.equal(back(rgb_images()), student(rgb_images()))


def test_the_mean_readout_follows_the_weights() -> None:
    student = make_student()
    features = torch.randn(4, student.backbone.feature_dim)
    assert student.generator is not None and student.classifier is not None
    with torch.no_grad():
        first = student.logits(features, "mean")
        assert torch.equal(first, mean_logits(student.generator, student.classifier, features))
        torch.testing.assert_close(deploy(student, "mean").reader(features), first)
        # small, so that logits are of the order of 1 and rounding is within the default tolerance
        student.generator.head.final.weight.normal_(std=0.1)
        student.generator.set_statistics(torch.arange(10.0) + 2, torch.arange(10.0) + 3)
        student.classifier.load_state_dict(nn.Linear(10, 5).state_dict())
        assert (student.logits(features, "mean") - first).abs().max() > 0.1
        torch.testing.assert_close(deploy(student, "mean").reader(features), student.logits(features, "mean"))
    torch.testing.assert_close(copy.deepcopy(student)(rgb_images()), student(rgb_images()))


def test_the_mean_readout_has_gradients_where_they_are_wanted() -> None:
    student = make_student().requires_grad_(True)
    student(rgb_images()).square().sum().backward()
    assert student.generator is not None
    gradients = [parameter.grad for parameter in student.generator.head.condition.parameters()]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


def test_a_student_made_for_inference_alone_gives_the_same_logits() -> None:
    with torch.inference_mode():
        made = make_student()(rgb_images())
    torch.testing.assert_close(made, make_student()(rgb_images()))


def test_a_student_without_generator_round_trips(tmp_path: Path) -> None:
    student = make_student(generative=False)
    back = load(student.save(tmp_path))
    assert back.readouts == ("linear",) and back.generator is None and back.classifier is None
    assert torch.equal(back(rgb_images()), student(rgb_images()))


def test_every_setting_of_the_generator_is_kept(saved: Path) -> None:
    back, student = load(saved), make_student()
    assert back.generator is not None and student.generator is not None
    assert back.generator.config == student.generator.config
    assert back.config() == student.config()


def test_the_time_of_the_mean_is_kept(tmp_path: Path) -> None:
    student = make_student()
    assert student.generator is not None
    before = student(rgb_images())
    student.generator.mean_time = 7
    assert (student(rgb_images()) - before).abs().max() > 1e-5  # constants are folded again
    back = load(student.save(tmp_path))
    assert back.generator is not None and back.generator.mean_time == 7
    assert torch.equal(back(rgb_images()), student(rgb_images()))
    described = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    del described["generator"]["mean_time"]  # as in older files without this entry
    assert Student.from_config(described).generator.mean_time == 19  # type: ignore[union-attr]


def test_a_run_folder_is_as_good_as_its_student_folder(saved: Path) -> None:
    expected = load(saved)(rgb_images())
    assert torch.equal(load(saved.parent)(rgb_images()), expected)
    assert torch.equal(load(str(saved))(rgb_images()), expected)


def test_the_device_is_where_it_is_put(saved: Path) -> None:
    student = load(saved, device="meta")
    assert {value.device.type for value in student.state_dict().values()} == {"meta"}


def test_weights_in_channels_last_are_saved_alike(tmp_path: Path) -> None:
    student = make_student()
    expected = student(rgb_images())
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(load(student.save(tmp_path))(rgb_images()), expected)


def test_the_readout_is_mean_with_a_generator_and_linear_without() -> None:
    assert make_student().readout == "mean" and make_student().readouts == ("linear", "mean", "sample")
    assert make_student(generative=False).readout == "linear"


def test_readouts_are_what_they_are_called() -> None:
    student = make_student(readout=ReadoutConfig("mean", steps=3, num_samples=4))
    features = student.features(rgb_images())
    torch.testing.assert_close(features, student.backbone(rgb_images())[0])
    assert student.generator is not None and student.classifier is not None
    by_hand = {
        "linear": student.backbone(rgb_images())[1],
        "mean": student.classifier(student.generator.mean(student.generator.condition(features))),
        "sample": student.classifier(student.generate(rgb_images(), generator=seeded()).mean(0)),
    }
    for name in READOUTS:
        torch.testing.assert_close(student.logits(features, name, seeded()), by_hand[name])
        student.readout = name
        torch.testing.assert_close(student.logits(features, generator=seeded()), by_hand[name])
    assert student.settings.steps == 3
    assert not torch.allclose(by_hand["linear"], by_hand["mean"])


def test_generate_takes_the_students_settings_unless_told() -> None:
    student = make_student(readout=ReadoutConfig("mean", steps=3, guidance=2.0, num_samples=4))
    base = student.generate(rgb_images(), generator=seeded())
    assert base.shape == (4, 3, 10)
    assert torch.equal(student.generate(rgb_images(), 3, 2.0, 4, generator=seeded()), base)
    assert student.generate(rgb_images(), num_samples=1, generator=seeded()).shape == (1, 3, 10)
    assert not torch.allclose(student.generate(rgb_images(), steps=5, generator=seeded()), base)
    assert not torch.allclose(student.generate(rgb_images(), guidance=1.0, generator=seeded()), base)
    with pytest.raises(UserError, match="num_samples: expected a positive integer, got 0"):
        student.generate(rgb_images(), num_samples=0)
    with pytest.raises(UserError, match="expected 1 to 20, got 21"):
        student.generate(rgb_images(), steps=21)


def test_an_unknown_readout_is_refused_with_the_nearest_name() -> None:
    student = make_student()
    with pytest.raises(UserError, match=r"got 'maen'\. Did you mean 'mean'\?") as caught:
        student.readout = "maen"  # type: ignore[assignment]
    one_line(caught)
    assert student.readout == "mean"


@pytest.mark.parametrize("name", ["mean", "sample"])
def test_a_student_without_generator_says_so(name: ReadoutName) -> None:
    student = make_student(generative=False)
    with pytest.raises(UserError, match=rf"has linear \(it has no generator\), got '{name}'") as caught:
        student.readout = name
    one_line(caught)
    with pytest.raises(UserError, match=r"no generator\), got .* Distil one with method gendd"):
        student.logits(student.features(rgb_images()), name)
    with pytest.raises(UserError, match="no generator: use readout 'linear'"):
        student.generate(rgb_images())
    with pytest.raises(UserError, match="no generator"):
        make_student(generative=False, readout=ReadoutConfig(name))


def test_a_classifier_of_generated_features_needs_a_generator() -> None:
    whole = make_student()
    with pytest.raises(UserError, match="got a classifier alone; give both or neither"):
        Student(whole.backbone, classifier=whole.classifier)


# --- without readouts ---


def test_the_embedding_is_the_generators_mean() -> None:
    student = make_student()
    assert student.generator is not None
    wanted = student.generator.mean(student.generator.condition(student.features(rgb_images())))
    assert torch.equal(student.embed(rgb_images()), wanted) and wanted.shape == (3, 10)
    with pytest.raises(UserError, match="no generator"):
        make_student(generative=False).embed(rgb_images())


def test_a_student_without_readouts_says_what_it_has() -> None:
    student = bare()
    assert student.readouts == ()
    assert student.generate(rgb_images(), num_samples=2, steps=3).shape == (2, 3, 10)
    with pytest.raises(UserError, match=r"has no readout: .* Use its features\(images\), embed\(") as caught:
        student(rgb_images())
    one_line(caught)
    with pytest.raises(UserError, match="this student has none, got 'linear'"):
        student.readout = "linear"


def test_a_generator_that_nothing_reads_leaves_the_linear_readout() -> None:
    student = bare(linear=True)
    assert student.readouts == ("linear",) and student.readout == "linear"
    with pytest.raises(UserError, match=r"has linear \(nothing reads generated features\), got 'mean'"):
        student.readout = "mean"
    with pytest.raises(UserError, match=r"Distil with gendd\.centres means") as caught:
        student.logits(student.features(rgb_images()), "mean")
    one_line(caught)


@pytest.mark.parametrize("linear", [False, True])
def test_a_student_without_a_reader_round_trips(linear: bool, tmp_path: Path) -> None:
    student = bare(linear)
    loaded = load(student.save(tmp_path))
    assert loaded.readouts == student.readouts and loaded.classifier is None
    assert torch.equal(loaded.embed(rgb_images()), student.embed(rgb_images()))
    assert loaded.config() == student.config()


def test_students_saved_before_there_were_others_are_linear(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    del config["linear"]
    (saved / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load(saved).readouts == ("linear", "mean", "sample")


# --- classes ---


def test_classes_are_named_where_names_are_known() -> None:
    whole = make_student()
    student = Student(whole.backbone, whole.generator, nn.Linear(10, 3)).eval()
    assert (student.num_classes("linear"), student.num_classes("mean"), student.num_classes()) == (5, 3, 3)
    assert student.class_names() == ["0", "1", "2"]
    student.info = {"class_names": list("abcde")}
    assert student.class_names("linear") == list("abcde") and student.class_names("sample") == list("012")
    student.info["teacher_class_names"] = list("xyz")
    assert student.class_names() == list("xyz")
    student.readout = "linear"
    assert student.class_names() == list("abcde")


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/here", "/nowhere/here", "a/b/c"])
def test_a_folder_that_is_not_there_is_no_hub_id(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", _must_not_be_called)
    with pytest.raises(UserError, match=f"No student at '{name}'") as caught:
        load(name)
    assert "config.json and model.safetensors" in one_line(caught)


def _must_not_be_called(*args: Any, **kwargs: Any) -> str:
    raise AssertionError(f"asked the Hub for {args}")


def test_a_folder_without_a_student_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No student at"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_missing(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(UserError, match=r"expected a run folder, or one with config\.json") as caught:
        load(saved)
    one_line(caught)


def test_another_format(saved: Path) -> None:
    change(saved, format=99)
    with pytest.raises(
        UserError, match=r"^Student .*: expected format 1, got 99; if another .* use that one\.$"
    ) as caught:
        load(saved)
    one_line(caught)


@pytest.mark.parametrize("text", ["{", "", "[1, 2]", '"text"', "\udcff"])
def test_a_config_that_is_no_json_object(saved: Path, text: str) -> None:
    (saved / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"expected a folder written by gendd; .+") as caught:
        load(saved)
    one_line(caught)


@pytest.mark.parametrize("key", ["backbone", "generator", "readout", "info"])
def test_a_config_that_lacks_a_key(saved: Path, key: str) -> None:
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    del config[key]
    (saved / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=rf"config\.json lacks '{key}'") as caught:
        load(saved)
    one_line(caught)


@pytest.mark.parametrize(
    "values, reason",
    [
        (
            {"backbone": {"name": "cifar/resnet8x0.5", "classes": 5}},
            "'backbone.classes'. Did you mean 'backbone.num_classes'",
        ),
        ({"backbone": "cifar/resnet8x0.5"}, "backbone: expected a section, got 'cifar/resnet8x0.5'"),
        ({"readout": {"name": "mean", "step": 3}}, "'readout.step'. Did you mean"),
        ({"readout": {"name": "mode"}}, "mode"),
    ],
)
def test_a_config_with_other_keys_or_values(saved: Path, values: dict[str, Any], reason: str) -> None:
    change(saved, **values)
    with pytest.raises(UserError, match=reason) as caught:
        load(saved)
    one_line(caught)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights(saved: Path, kept: int) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"expected a folder written by gendd; .+") as caught:
        load(saved)
    one_line(caught)


def test_weights_that_lack_a_parameter_name_it(saved: Path) -> None:
    file = saved / "model.safetensors"
    state = load_file(file)
    del state["generator.norm.weight"]
    save_file(state, file)
    with pytest.raises(UserError, match=r"generator\.norm\.weight") as caught:
        load(saved)
    one_line(caught)


def test_weights_of_another_size_name_the_parameter(saved: Path) -> None:
    file = saved / "model.safetensors"
    save_file({**load_file(file), "classifier.bias": torch.zeros(6)}, file)
    with pytest.raises(UserError, match=r"classifier\.bias") as caught:
        load(saved)
    one_line(caught)


def test_names_that_are_wrong_are_refused_wherever_they_are_given() -> None:
    student = make_student()
    feature = student.features(rgb_images())
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: student.predict(rgb_images(), readout="men"), "Did you mean 'mean'"),  # type: ignore[arg-type]
        (lambda: student.logits(feature, "liner"), "Did you mean 'linear'"),  # type: ignore[arg-type]
        (lambda: student.generate(rgb_images(), sampler="DDIM"), "readout.sampler: expected one of ddpm"),
        (lambda: student.predict(rgb_images(), 4, sampler="ddmp"), "got 'ddmp'"),  # type: ignore[arg-type]
        (lambda: ReadoutConfig("men"), "readout.name: expected one of linear"),  # type: ignore[arg-type]
        (lambda: student.predict(rgb_images(), 4, steps=2.5), "Sampling steps: expected 1 to"),  # type: ignore[arg-type]
        (lambda: student.predict(rgb_images().numpy()), "expected a torch.Tensor"),  # type: ignore[arg-type]
        (lambda: student(rgb_images()[0]), r"as images\[None\]"),
    ]
    for call, message in calls:
        with pytest.raises(UserError, match=message) as caught:
            call()
        one_line(caught)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_student_in_other_numbers_gives_every_readout(dtype: torch.dtype) -> None:
    student = make_student().eval()
    expected = {name: deploy(student, name)(rgb_images()) for name in student.readouts}
    other = copy.deepcopy(student).to(dtype)
    near = {"rtol": 0.1, "atol": 0.1} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    for name, logits in expected.items():
        for network in (deploy(other, name), deploy(student, name).to(dtype)):
            found = network(rgb_images())
            assert found.dtype == dtype
            torch.testing.assert_close(found.float(), logits, **near)
        with torch.no_grad():
            assert other.logits(other.features(rgb_images()), name).dtype == dtype
    told = other.predict(rgb_images(), uncertainty=4)
    assert told.mixture is not None and bool(told.mixture.isfinite().all())


def test_images_in_float64_are_those_in_float32() -> None:
    student = make_student().eval()
    with torch.no_grad():
        torch.testing.assert_close(student(rgb_images().double()), student(rgb_images()))


def test_no_images_give_no_logits() -> None:
    student = make_student().eval()
    none = rgb_images()[:0]
    for name in student.readouts:
        assert deploy(student, name)(none).shape == (0, student.num_classes(name))
    told = student.predict(none, uncertainty=4)
    assert told.spread is not None and told.spread.shape == (0,)


def test_what_is_folded_under_autocast_is_exact() -> None:
    student = make_student()
    feature = student.features(rgb_images())
    expected = deploy(student, "mean").reader(feature)
    with torch.autocast("cpu", torch.bfloat16):
        deployed = deploy(student, "mean")
        assert torch.equal(deployed.reader(feature), expected)
    assert torch.equal(deployed.reader(feature), expected)
