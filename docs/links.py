"""The site's pages: the README is its home, files that pages link to are beside them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import File, Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
HOMES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
_SOURCES = {page: source for source, page in HOMES.items()}
_SHOWN = {".py": "python", ".yaml": "yaml"}
_LINK = re.compile(r"(?<=\]\()([^)#\s:]+)")
# 86.46 ± 0.34 and +6.02 to +9.30
_SPREAD = re.compile(r"(?<=\d) (±|to) (?=[\d+−])")
_ROLE = re.compile(r":\w+:<code>~?([\w.]+)</code>")


def place(path: str) -> str:
    """Where the site has what lies at a path of the repository."""
    if path in HOMES:
        return HOMES[path]
    shown = ".md" if Path(path).suffix in _SHOWN else ""
    return path.removeprefix("docs/") + shown


def links(text: str, source: str) -> dict[str, str]:
    """What the links of a page at a path of the repository point to there, where it is in the repository."""
    found = {
        target: posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        for target in _LINK.findall(text)
    }
    return {target: path for target, path in found.items() if (ROOT / path).is_file()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for source, page in HOMES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for file in list(files.documentation_pages()):
        source = _source(file)
        for path in links(file.content_string, source).values():
            if files.get_file_from_path(place(path)) is None:
                files.append(_linked(path, config))
    return files


def _source(file: File) -> str:
    return _SOURCES.get(file.src_uri, f"docs/{file.src_uri}")


def _linked(path: str, config: MkDocsConfig) -> File:
    """A file of the repository that a page links to; code as a page that shows it."""
    from mkdocs.structure.files import File, InclusionLevel

    apart: Any = {"inclusion": InclusionLevel.NOT_IN_NAV}
    if (language := _SHOWN.get(Path(path).suffix)) is None:
        return File.generated(config, place(path), abs_src_path=str(ROOT / path), **apart)
    code = (ROOT / path).read_text(encoding="utf-8")
    return File.generated(config, place(path), content=f"# {path}\n\n````{language}\n{code}````\n", **apart)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the repository as links between pages of the site."""
    known = links(markdown, _source(page.file))
    here = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        path = known.get(match[0])
        return match[0] if path is None else posixpath.relpath(place(path), here or ".")

    return _LINK.sub(moved, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The roles of docstrings as links, where what they name has a place, and numbers on one line."""

    def linked(match: re.Match[str]) -> str:
        name = match[1] if match[1].startswith("gendd.") else f"gendd.{match[1]}"
        return f'<autoref identifier="{name}" optional><code>{match[1]}</code></autoref>'

    return _SPREAD.sub(r"&nbsp;\1&nbsp;", _ROLE.sub(linked, html))
