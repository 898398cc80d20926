"""The documentation: its navigation, its links, and the reference generated from the code."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from markdown.extensions.toc import slugify

from gendd.cli.parsing import COMMANDS
from gendd.config import keys
from gendd.config.registry import names, settings_type

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

if not DOCS.is_dir():
    pytest.skip("docs/ is not beside tests/", allow_module_level=True)

PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("*/README.md")), *sorted(DOCS.rglob("*.md"))]


def hook(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def generated() -> dict[Path, str]:
    return {DOCS / "reference" / f"{name}.md": write() for name, write in hook("reference").PAGES.items()}


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {slugify(heading.replace("`", ""), "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path, generated: dict[Path, str]) -> None:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.is_file() or found in generated, f"{page.name}: {target}"
        if anchor:
            there = generated.get(found) or found.read_text(encoding="utf-8")
            assert anchor in anchors(there), f"{page.name}: {target}"


def pages_of(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for each in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from pages_of(each)


def test_every_page_is_in_the_navigation(generated: dict[Path, str]) -> None:
    nav = list(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    written = {page.relative_to(DOCS).as_posix() for page in [*DOCS.rglob("*.md"), *generated]}
    assert sorted(nav) == sorted(written | set(hook("links").HOMES.values()))


def test_links_between_files_are_links_between_pages() -> None:
    links = hook("links")
    assert links.links("[a](../README.md#results) [b](x/y) [c](one-pass.md)", "docs/method.md") == {
        "../README.md": "README.md",
        "one-pass.md": "docs/one-pass.md",
    }
    assert links.place("README.md") == "index.md"
    assert links.place("docs/one-pass.md") == "one-pass.md"
    assert links.place("examples/own_method.py") == "examples/own_method.py.md"


def test_a_number_and_its_spread_stay_on_one_line() -> None:
    told = hook("links").on_page_content(
        "<td>86.46 ± 0.34</td><td>+6.02 to +9.30</td> goes to 3", None, None, None
    )
    assert told == "<td>86.46&nbsp;±&nbsp;0.34</td><td>+6.02&nbsp;to&nbsp;+9.30</td> goes to 3"


def test_the_reference_has_every_setting(generated: dict[Path, str]) -> None:
    text = generated[DOCS / "reference" / "configuration.md"]
    rows = dict(re.findall(r'^\| <span id="([\w.]+)">.*?\| ([^|]+) \|$', text, re.M))
    expected = {key for key in keys() if not key.startswith(("student.", "teacher_training."))}
    expected |= {key for name in names() for key in keys(settings_type(name), f"{name}.")}
    sections = {key.split(".")[0] for key in expected if "." in key}
    assert set(rows) == expected - sections - {"student", "teacher_training", "settings"}
    for key in rows:
        cells = re.search(rf'^\| <span id="{re.escape(key)}">.*\|$', text, re.M)
        assert cells is not None and all(cell.strip() for cell in cells[0].strip("|").split(" | ")), key


def test_the_reference_tells_defaults() -> None:
    reference = hook("reference")

    @dataclasses.dataclass
    class Settings:
        """Some.

        Args:
            first: E[f | z] of :attr:`x`.
            second: Words.
        """

        first: float | None = None
        second: tuple[int, int] = (1, 2)

    # annotations of a class in a function are strings that can't be looked up
    Settings.__annotations__ = {"first": float | None, "second": tuple[int, int]}
    lines = reference.settings(Settings, "a.").splitlines()
    assert (
        lines[2] == '| <span id="a.first">`a.first`</span> | number or `null` | `null` | E[f \\| z] of `x`. |'
    )
    assert lines[3].startswith('| <span id="a.second">`a.second`</span> | two integers | `[1, 2]` |')


def test_the_reference_has_the_options_of_every_command(generated: dict[Path, str]) -> None:
    text = generated[DOCS / "reference" / "options.md"]
    for command in COMMANDS:
        assert f"## gendd {command}\n\n```text\nusage: gendd {command}" in text
    assert "refused without --trust-code" in text
