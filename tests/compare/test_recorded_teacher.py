"""A recorded teacher answers like the original, computing each batch once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import gendd
from gendd.compare.teacher import RecordedTeacher, answers_folder, ledger_seconds, remove_unfinished
from gendd.config import ModelConfig
from gendd.methods import KD
from gendd.models import Frozen
from gendd.models.maps import thinned


@pytest.fixture
def teacher() -> Frozen:
    torch.manual_seed(0)
    return Frozen(gendd.create_backbone("cifar/resnet8x0.5", num_classes=5, in_channels=1))


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_answers_are_the_teachers_own_and_computed_once(teacher: Frozen, tmp_path: Path) -> None:
    feature, logits = teacher(images())
    first, second = RecordedTeacher(teacher, tmp_path), RecordedTeacher(teacher, tmp_path)
    for recorded in (first, second, second):
        found = recorded(images())
        assert torch.equal(found[0], feature) and torch.equal(found[1], logits)
        assert found[0].dtype == feature.dtype
    assert (first.computed, first.found) == (1, 0)
    assert (second.computed, second.found) == (0, 2)
    # one pixel makes another batch
    other = images()
    other[3, 0, 7, 7] += 0.5
    assert torch.equal(second(other)[1], teacher(other)[1])
    assert second.computed == 1
    assert not second.training and not any(each.requires_grad for each in second.parameters())


def test_a_map_is_rounded_alike_when_it_is_computed_and_when_it_is_found(
    teacher: Frozen, tmp_path: Path
) -> None:
    exact = teacher.with_map(images())
    recorded = RecordedTeacher(teacher, tmp_path)
    # an answer without a map is computed again with it, independently of the recorded one
    recorded(images())
    computed, found = recorded.with_map(images()), recorded.with_map(images())
    assert (recorded.computed, recorded.found) == (2, 1)
    assert exact[2] is not None and computed[2] is not None and found[2] is not None
    for place in range(2):
        assert torch.equal(computed[place], exact[place]) and torch.equal(found[place], exact[place])
    assert torch.equal(computed[2], found[2])
    assert found[2].dtype == exact[2].dtype
    torch.testing.assert_close(found[2], exact[2], rtol=2**-11, atol=1e-7)
    # recorded stage maps include the map, and serve requests for it
    *_, last, stages = recorded.with_stages(images())
    exact_stages = teacher.with_stages(images())[3]
    again = recorded.with_stages(images())
    assert torch.equal(last, found[2]) and torch.equal(again[2], last)
    assert len(stages) == len(exact_stages) == len(again[3]) > 0
    for first, exact_one, second in zip(stages, exact_stages, again[3], strict=True):
        torch.testing.assert_close(first, exact_one, rtol=2**-11, atol=1e-7)
        assert torch.equal(first, second)
    assert (recorded.computed, recorded.found) == (3, 2)
    # an answer with a map also serves requests without one
    fresh = RecordedTeacher(teacher, tmp_path)
    fresh(images())
    assert fresh.found == 1


def test_only_the_requested_stages_are_stored(teacher: Frozen, tmp_path: Path) -> None:
    *_, last, stages = RecordedTeacher(teacher, tmp_path / "all").with_stages(images())
    assert len(stages) > 1
    recorded = RecordedTeacher(teacher, tmp_path / "last")
    for count in (1, 9):
        recorded.stages = (False,) * count
        for _ in range(2):
            *_, found, fewer = recorded.with_stages(images())
            assert found is not None and last is not None and torch.equal(found, last)
            assert all(map(torch.equal, fewer, stages[-count:])) and len(fewer) == min(count, len(stages))
    assert (recorded.computed, recorded.found) == (2, 2)

    def size(name: str, pattern: str) -> int:
        return sum(each.stat().st_size for each in (tmp_path / name).rglob(pattern))

    assert size("last", "*.stages1.*") < size("all", "*.stages.*") == size("last", "*.stages9.*")
    recorded.stages = (True,) * 9
    *_, thin = recorded.with_stages(images())
    assert all(torch.equal(one, thinned(whole)) for one, whole in zip(thin, stages, strict=True))
    assert size("last", "*.stages9-ttttttttt.*") > 0


def test_bf16_answers_keep_their_type_and_are_apart_from_others(teacher: Frozen, tmp_path: Path) -> None:
    recorded = RecordedTeacher(teacher, tmp_path)
    plain = recorded(images())
    with torch.autocast("cpu", torch.bfloat16):
        exact = teacher(images())
        cast = [recorded(images()) for _ in range(2)]
    assert recorded.computed == 2
    assert cast[0][1].dtype == exact[1].dtype == torch.bfloat16
    for found in cast:
        assert torch.equal(found[0], exact[0]) and torch.equal(found[1], exact[1])
    assert not torch.equal(plain[1], cast[0][1].float())


def test_an_embedding_teacher_has_empty_logits(tmp_path: Path) -> None:
    backbone = gendd.create_backbone("cifar/resnet8x0.5", num_classes=5, in_channels=1, classifier=False)
    recorded = RecordedTeacher(Frozen(backbone), tmp_path)
    assert [recorded(images())[1].shape for _ in range(2)] == [(4, 0), (4, 0)]
    assert recorded.found == 1


def test_beyond_its_bound_nothing_is_kept(teacher: Frozen, tmp_path: Path) -> None:
    recorded = RecordedTeacher(teacher, tmp_path / "answers", limit=2000)
    for seed in range(6):
        recorded(images(seed))
    kept = list(tmp_path.rglob("*.safetensors"))
    assert 0 < len(kept) < 6
    assert torch.equal(recorded(images(5))[0], teacher(images(5))[0])
    assert recorded.computed == 7


def test_seconds_of_training_are_those_without_the_record(
    teacher: Frozen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "logs" / "seconds.txt"
    first = RecordedTeacher(teacher, tmp_path, ledger=ledger)
    clock = {"now": 0.0}

    def tick() -> float:
        clock["now"] += 1.0
        return clock["now"]

    monkeypatch.setattr("gendd.compare.teacher.time.perf_counter", tick)
    # start, pass from 2 to 3, end at 4: three seconds were spent where one would have been
    first(images())
    assert first.saved == 1 - 3
    # found on disk: start and end a second apart, instead of the pass
    second = RecordedTeacher(teacher, tmp_path, ledger=ledger)
    second(images(0))
    assert second.saved == 1 - 1
    # a batch repeated after an interruption counts once, by its last entry
    assert ledger_seconds(ledger) == 0.0
    first(images(1))
    assert ledger_seconds(ledger) == -2.0
    # validation is not part of the training seconds
    with torch.no_grad():
        first(images(2))
    assert ledger_seconds(ledger) == -2.0
    with ledger.open("a") as stream:
        stream.write("0123 cut sho")
    assert ledger_seconds(ledger) == -2.0
    assert ledger_seconds(tmp_path / "none") == 0.0


def test_a_damaged_answer_is_computed_anew(teacher: Frozen, tmp_path: Path) -> None:
    recorded = RecordedTeacher(teacher, tmp_path)
    expected = recorded(images())
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    again = recorded(images())
    assert torch.equal(again[0], expected[0])
    assert recorded.computed == 2
    (path.parent / f".x-{os.getpid()}.tmp").write_text("half")
    root = tmp_path.parent / "root"
    root.mkdir()
    tmp_path.rename(root / "digest")
    remove_unfinished(root)
    assert not list(root.rglob("*.tmp"))
    assert list(root.rglob("*.safetensors"))


def test_other_weights_and_settings_have_another_folder(teacher: Frozen, tmp_path: Path) -> None:
    config = ModelConfig("cifar/resnet8x0.5")
    same = answers_folder(tmp_path, teacher, config)
    assert same == answers_folder(tmp_path, teacher, config)
    assert same != answers_folder(tmp_path, teacher, ModelConfig("cifar/resnet8x0.5", compile=True))
    with torch.no_grad():
        teacher.classifier.weight[0, 0] += 1
    assert same != answers_folder(tmp_path, teacher, config)


def test_a_method_learns_the_same_from_a_recorded_teacher(teacher: Frozen, tmp_path: Path) -> None:
    student = gendd.create_backbone("cifar/resnet8x0.5", num_classes=5, in_channels=1)
    labels = torch.tensor([0, 1, 2, 3])
    plain = KD(student, teacher).eval()(images(), labels).loss
    for _ in range(2):
        method = KD(student, RecordedTeacher(teacher, tmp_path)).eval()
        assert torch.equal(method(images(), labels).loss, plain)
