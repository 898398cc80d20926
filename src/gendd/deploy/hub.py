"""Students on the Hugging Face Hub: a student's folder is a repository as it stands."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from gendd.errors import UserError
from gendd.files import check_student, no_student, student_folder, write_text
from gendd.models.downloads import hub_or_cache, unreached
from gendd.student import Student, student

# of a student's folder, which may hold what was exported from it too
FILES = ("README.md", "config.json", "model.safetensors")


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    backbone: nn.Module | None = None,
) -> Student:
    """A saved student, in eval mode.

    Args:
        path: A run folder, its ``student`` folder, or the id of a Hugging Face repository.
        device: Where to put it.
        revision: Of the repository.
        backbone: The student's network, which gets the saved weights: needed where it was made in Python
            and its architecture isn't known by name.

    Raises:
        UserError: there is no student at ``path``, its files don't fit together, or its network isn't
            known by name and not given.
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
    """Upload a student with its model card to the Hub, from where :func:`gendd.load` takes it by ``repo_id``.

    Args:
        source: A student, or the folder of one or of its run.
        repo_id: ``NAME/REPOSITORY``, made where there is none.
        private: Whether a repository that is made is private; None: as the account has it.
        token: Of the account; None: that of ``hf auth login`` or the environment's ``HF_TOKEN``.
        commit_message: Of the upload.

    Returns:
        Its address.

    Raises:
        UserError: no student there, or the Hub refuses or is out of reach.
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
    """The folder of a student of the Hub, with what is needed to load it.

    Raises:
        UserError: there is none, or the Hub is out of reach.
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
    """Upload a student's folder; returns its address."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(token=token)
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message=commit_message or "Upload a student distilled with gendd",
            # the folder may hold what was exported from it too, which is not asked for
            allow_patterns=list(FILES),
        )
    except Exception as error:  # of the network, the Hub or its client, which raises many kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"Hub: could not upload to {repo_id!r}: {reason.rstrip('.')}. Check its name (NAME/REPOSITORY) "
            "and your rights to it; log in with 'hf auth login', or set HF_TOKEN."
        ) from error
    return str(made)
