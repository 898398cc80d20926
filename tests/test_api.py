from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import gendd

EXAMPLE = Path(__file__).parents[1] / "examples" / "bare_pytorch.py"


@pytest.mark.parametrize("name", gendd.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(gendd, name).__name__ == name
    assert name in dir(gendd)


def test_public_names_are_sorted_and_documented() -> None:
    # capitals first, as ruff sorts them
    assert sorted(gendd.__all__) == sorted(set(gendd.__all__))
    for name in gendd.__all__:
        assert getattr(gendd, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'gendd' has no attribute 'distil'"):
        gendd.distil  # noqa: B018


def test_importing_the_package_and_listing_recipes_loads_no_torch() -> None:
    code = (
        "import sys, gendd, gendd.cli\n"
        "gendd.RunConfig, gendd.UserError, dir(gendd)\n"
        "assert gendd.cli.main(['--help']) == gendd.cli.main(['recipes']) == 0\n"
        "loaded = {'torch', 'lightning', 'timm', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_carries_its_types_and_recipes() -> None:
    assert gendd.__file__ is not None
    folder = Path(gendd.__file__).parent
    assert (folder / "py.typed").is_file()
    assert (folder / "recipes" / "digits.yaml").is_file()


def test_the_bare_pytorch_example_is_short_and_works(capsys: pytest.CaptureFixture[str]) -> None:
    if not EXAMPLE.is_file():
        pytest.skip("examples/ is not beside tests/")
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 40
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    out = capsys.readouterr().out
    found = re.findall(r"^(mean|linear): (\d+\.\d)%$", out, re.M)
    assert [name for name, _ in found] == ["mean", "linear"]
    assert all(float(value) > 90 for _, value in found), out
