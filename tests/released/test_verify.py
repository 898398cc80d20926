from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gendd.errors import UserError
from gendd.released.verify import PUBLIC_REFERENCE, TOLERANCE, verify

Arrays = dict[str, NDArray[Any]]
SHARED = Path(__file__).parents[3] / "shared" / "parity" / "gendd_reference.npz"

GROUPS = {
    "schedule",
    "respaced/10",
    "respaced/64",
    "respaced/100",
    "head",
    "loss/mse",
    "loss/vlb",
    "loss/total",
    "loss/gradient",
    "sample/cfg1.0",
    "sample/cfg2.0",
    "full/hard/loss",
    "full/hard/probe",
    "full/soft/loss",
    "full/soft/probe",
}


def arrays() -> Arrays:
    with np.load(PUBLIC_REFERENCE) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Arrays], Path]:
    def save(values: Arrays) -> Path:
        path = tmp_path / "reference.npz"
        np.savez(path, **values)  # type: ignore[arg-type]
        return path

    return save


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        verify(path)
    message = str(caught.value)
    assert "\n" not in message and repr(str(path)) in message
    return message


@pytest.mark.parametrize("path", [None, SHARED], ids=["shipped", "authors"])
def test_every_group_agrees(path: Path | None) -> None:
    if path is not None and not path.is_file():
        pytest.skip(f"the authors' numbers are not beside the checkout: {path}")
    found = verify(path)
    assert set(found) == GROUPS
    assert {name: deviation for name, deviation in found.items() if not deviation <= 1e-5} == {}


@pytest.mark.parametrize(
    "name, groups",
    [
        ("schedule/posterior_variance", {"schedule"}),
        ("respaced/64/betas", {"respaced/64"}),
        ("head/out", {"head"}),
        ("loss/mse", {"loss/mse"}),
        ("loss/vb", {"loss/vlb"}),
        ("loss/loss", {"loss/total"}),
        ("loss/grad_cond", {"loss/gradient"}),
        ("sample/cfg2.0/out", {"sample/cfg2.0"}),
        ("sample/cfg1.0/init_noise", {"sample/cfg1.0"}),
        ("full/soft/loss", {"full/soft/loss"}),
        ("full/hard/probe_logits", {"full/hard/probe"}),
        ("state/cls_centers", {"full/hard/loss", "full/soft/loss"}),
        ("state/cls_projector.0.weight", {"full/hard/loss", "full/soft/loss"}),
        ("state/model.fc.weight", {"full/hard/probe", "full/soft/probe"}),
    ],
)
@pytest.mark.parametrize("damage", [1.5, np.nan])
def test_a_changed_number_is_noticed_in_its_groups_alone(
    name: str, groups: set[str], damage: float, write: Callable[[Arrays], Path]
) -> None:
    values = arrays()
    changed = (values[name] * damage).astype(values[name].dtype)
    if np.isnan(damage) and changed.size > 1:
        # one NaN among finite values, not in the last position
        changed = values[name].copy()
        changed.flat[1] = np.nan
    found = verify(write({**values, name: changed}))
    assert {group for group, deviation in found.items() if not deviation <= TOLERANCE} == groups
    assert max(found.values()) > TOLERANCE


def test_a_perturbed_head_is_noticed_wherever_the_head_is_used(write: Callable[[Arrays], Path]) -> None:
    values = arrays()
    name = "state/diffloss.net.res_blocks.0.mlp.0.weight"
    changed = values[name].copy()
    changed[0] += 0.1
    found = verify(write({**values, name: changed}))
    for group in ("head", "loss/mse", "loss/gradient", "sample/cfg1.0", "sample/cfg2.0", "full/hard/loss"):
        assert found[group] > TOLERANCE, group
    assert found["schedule"] < 1e-9 and found["full/hard/probe"] < 1e-5


# required arrays: other tables of the schedule only add comparisons, token index and classifier are not used
NEEDED = [
    name
    for name in arrays()
    if name == "schedule/betas"
    or (name.startswith("respaced/") and name.endswith("betas"))
    or not name.startswith(("schedule/", "respaced/", "state/chunk_idx", "state/classifier."))
]


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_array_is_named(name: str, write: Callable[[Arrays], Path]) -> None:
    values = arrays()
    del values[name]
    shown = name.rsplit(".", 1)[-1] if name.startswith("state/diffloss") else name.removeprefix("state/")
    assert shown in refused(write(values))


def test_a_reference_without_respacings_is_refused(write: Callable[[Arrays], Path]) -> None:
    values = {name: value for name, value in arrays().items() if not name.startswith("respaced/")}
    assert "respaced/" in refused(write(values))


def test_arrays_that_do_not_fit_together_are_refused(write: Callable[[Arrays], Path]) -> None:
    name = "state/diffloss.net.cond_embed.weight"
    values = arrays()
    assert "condition.weight" in refused(write({**values, name: values[name][:, :-1]}))
    assert "fit together" in refused(write({**values, "head/out": values["head/out"][:-1]}))


def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    whole = PUBLIC_REFERENCE.read_bytes()
    contents = {
        "empty.npz": b"",
        "text.npz": b"not an archive",
        "cut.npz": whole[: len(whole) // 2],
        "damaged.npz": whole[:2000] + bytes(400) + whole[2400:],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert "expected a readable .npz file" in refused(tmp_path / name)
    np.save(tmp_path / "single.npy", np.zeros(3))
    assert "expected a readable .npz file" in refused(tmp_path / "single.npy")
    assert "No such file" in refused(tmp_path / "nowhere.npz")
