from __future__ import annotations

import inspect
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from helpers import make_student, one_line, rgb_images

import gendd
from gendd.cli import main
from gendd.deploy.hub import push_to_hub
from gendd.errors import UserError

REAL = huggingface_hub.HfApi


class Hub:
    """Records the calls of HfApi, checked against the installed signatures, and the uploaded files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None

    def api(self, *args: Any, **options: Any) -> Hub:
        self.called("__init__", args, options)
        return self

    def create_repo(self, *args: Any, **options: Any) -> huggingface_hub.RepoUrl:
        given = self.called("create_repo", args, options)
        if self.error is not None:
            raise self.error
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{given['repo_id']}")

    def upload_folder(self, *args: Any, **options: Any) -> None:
        given = self.called("upload_folder", args, options)
        for file in Path(given["folder_path"]).rglob("*"):
            name = str(file.relative_to(given["folder_path"]))
            if file.is_file() and any(fnmatch(name, pattern) for pattern in given["allow_patterns"]):
                shutil.copy(file, self.folder / name)

    def called(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
        signature = inspect.signature(getattr(REAL, name))
        given = dict(signature.bind(self, *args, **options).arguments)
        given.pop("self")
        self.calls.append((name, given))
        return given

    def files(self) -> set[str]:
        return {file.name for file in self.folder.iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    folder = tmp_path / "hub"
    folder.mkdir()
    made = Hub(folder)
    monkeypatch.setattr("huggingface_hub.HfApi", made.api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: str(folder))
    return made


def test_a_run_s_student_goes_to_the_hub_and_comes_back(hub: Hub, small_run: Path) -> None:
    (small_run / "student" / "notes.txt").touch()
    assert push_to_hub(small_run, "someone/student", private=True, token="t", commit_message="first") == (
        "https://huggingface.co/someone/student"
    )
    assert [name for name, _ in hub.calls] == ["__init__", "create_repo", "upload_folder"]
    started, created, uploaded = (given for _, given in hub.calls)
    assert started == {"token": "t"}
    assert created == {"repo_id": "someone/student", "private": True, "exist_ok": True}
    assert uploaded["repo_id"] == "someone/student" and uploaded["commit_message"] == "first"
    assert hub.files() == {"README.md", "config.json", "model.safetensors"}
    digits = torch.rand(2, 1, 8, 8)
    assert torch.equal(gendd.load("someone/student")(digits), gendd.load(small_run)(digits))
    (small_run / "student" / "notes.txt").unlink()


def test_a_student_of_python_goes_to_the_hub(hub: Hub, small_run: Path) -> None:
    student = make_student()
    assert push_to_hub(student, "someone/made") == "https://huggingface.co/someone/made"
    assert hub.calls[1][1] == {"repo_id": "someone/made", "private": None, "exist_ok": True}
    assert torch.equal(gendd.load("someone/made")(rgb_images()), student(rgb_images()))
    text = (hub.folder / "README.md").read_text(encoding="utf-8")
    assert "## Figures" not in text and "Distilled by Generative Distribution Distillation" in text
    # with the card of the folder it was loaded from
    loaded = gendd.load(small_run)
    assert loaded.folder is not None
    card = (loaded.folder / "README.md").read_text(encoding="utf-8")
    push_to_hub(loaded, "someone/loaded", commit_message="again")
    assert (hub.folder / "README.md").read_text(encoding="utf-8") == card
    assert "## Figures" in card
    assert hub.calls[-1][1]["commit_message"] == "again"


def test_a_student_without_a_card_gets_one(hub: Hub, tmp_path: Path) -> None:
    folder = make_student().save(tmp_path / "student")
    push_to_hub(tmp_path, "someone/student")
    front = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert front["library_name"] == "gendd" and "README.md" in hub.files()


def test_where_there_is_no_student(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No student at .*: expected a run folder, or one with config\.json"):
        push_to_hub(tmp_path, "someone/student")
    assert hub.calls == []


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError("403 Forbidden.\nsee there"), r"403 Forbidden\. see there\. Check"),
        (ConnectionError(), "Connection"),
    ],
)
def test_a_hub_that_refuses(error: Exception, reason: str, hub: Hub, small_run: Path) -> None:
    hub.error = error
    with pytest.raises(UserError, match=f"could not upload to 'someone/student': {reason}") as caught:
        push_to_hub(small_run, "someone/student")
    assert "\n" not in str(caught.value) and "hf auth login" in str(caught.value)


def test_a_name_that_is_none(small_run: Path) -> None:
    # the real client looks at it before it asks the Hub
    with pytest.raises(UserError, match="could not upload to 'a/b/c': "):
        push_to_hub(small_run, "a/b/c")


def test_the_command(hub: Hub, small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(small_run), "someone/student", "--private", "--message", "m"]) == 0
    assert capsys.readouterr().out == "https://huggingface.co/someone/student\n"
    assert hub.calls[1][1]["private"] is True and hub.calls[2][1]["commit_message"] == "m"
    assert main(["push", str(small_run), "someone/student"]) == 0
    assert hub.calls[4][1]["private"] is None
    assert main(["push", str(small_run)]) == 2
    assert "REPO_ID. See: gendd push --help." in capsys.readouterr().err


def test_a_hub_id_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = make_student().save(tmp_path)
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    loaded = gendd.load("someone/student", revision="v1")
    assert torch.equal(loaded(rgb_images()), make_student()(rgb_images()))
    assert asked["name"] == "someone/student" and asked["revision"] == "v1"
    assert set(asked["allow_patterns"]) == {"config.json", "*.safetensors"}


@pytest.mark.parametrize(
    "error", [OSError("no such repository\nhelp: log in"), ConnectionError(), ValueError("bad id")]
)
def test_a_hub_id_that_is_out_of_reach(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    with pytest.raises(UserError, match=r"a repository of the Hub, got neither: .+") as caught:
        gendd.load("someone/student")
    one_line(caught)


def test_a_repository_that_holds_no_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path))
    with pytest.raises(UserError, match=r"config\.json") as caught:
        gendd.load("someone/student")
    one_line(caught)
