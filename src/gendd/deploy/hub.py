"""Students on the Hugging Face Hub: a student's folder is uploaded as a repository."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from gendd.errors import UserError
from gendd.files import check_student, no_student, student_folder, write_text
from gendd.models.downloads import hub_or_cache, unreached
from gendd.student import Student, student

# files to upload from a student's folder, which may contain exports too
FILES = ("README.md", "config.json", "model.safetensors")


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    backbone: nn.Module | None = None,
) -> Student:
    """Load a saved student, in eval mode.

    Args:
        path: A run folder, its ``student`` folder, or the id of a Hugging Face repository.
        device: Where to put it.
        revision: Revision of the repository.
        backbone: The student's network, into which the saved weights are loaded: required if it was built in
            Python and its architecture has no known name.

    Raises:
        UserError: there is no student at ``path``, its files don't fit together, or its network has no
            known name and is not given.
    """
    found = path if check_student(path) else download(str(path), revision)
    return student.load(found, device=device, backbone=backbone)


def push_to_hub(
    source: Student | str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a student with its model card to the Hub, to be loaded by :func:`gendd.load` with ``repo_id``.

    Args:
        source: A student, its folder, or its run's folder.
        repo_id: ``NAME/REPOSITORY``, created if it does not exist.
        private: Whether a created repository is private; None: the account's default.
        token: Access token; None: that of ``hf auth login`` or the environment's ``HF_TOKEN``.
        commit_message: Commit message of the upload.

    Returns:
        The URL.

    Raises:
        UserError: no student there, or the Hub refuses or can't be reached.
    """
    # slow to import
    from gendd.report.model_card import card

    if isinstance(source, Student):
        with tempfile.TemporaryDirectory() as name:
            folder = source.save(name)
            saved = None if source.folder is None else source.folder / "README.md"
            has_card = saved is not None and saved.is_file()
            text = saved.read_text(encoding="utf-8") if saved is not None and has_card else card(source)
            write_text(folder / "README.md", text)
            return _upload(folder, repo_id, private, token, commit_message)
    found = student_folder(source)
    if found is None:
        raise no_student(source)
    if not (found / "README.md").is_file():
        write_text(found / "README.md", card(student.load(found)))
    return _upload(found, repo_id, private, token, commit_message)


def download(repo_id: str, revision: str | None = None) -> Path:
    """Download the files needed to load a student from the Hub, and return their folder.

    Raises:
        UserError: there is no student, or the Hub can't be reached.
    """
    from huggingface_hub import snapshot_download

    with hub_or_cache() as host:
        try:
            return Path(
                snapshot_download(repo_id, revision=revision, allow_patterns=["config.json", "*.safetensors"])
            )
        except Exception as error:
            raise UserError(
                f"No student at {repo_id!r}: expected a run folder, one with config.json and "
                f"model.safetensors, or a repository of the Hub, got neither: {unreached(error, host)}."
            ) from error


def _upload(
    folder: Path, repo_id: str, private: bool | None, token: str | None, commit_message: str | None
) -> str:
    """Upload a student's folder and return its URL."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(token=token)
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message=commit_message or "Upload a student distilled with gendd",
            # the folder may also contain exports, which are not uploaded
            allow_patterns=list(FILES),
        )
    except Exception as error:  # network, Hub and client raise many kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"Hub: could not upload to {repo_id!r}: {reason.rstrip('.')}. Check its name (NAME/REPOSITORY) "
            "and your rights to it; log in with 'hf auth login', or set HF_TOKEN."
        ) from error
    return str(made)
