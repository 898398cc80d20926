"""Students on the Hugging Face Hub: a student's folder is a repository as it stands."""

from __future__ import annotations

import tempfile
from pathlib import Path

from gendd.errors import UserError
from gendd.files import write_text
from gendd.modelcard import card
from gendd.student import FILES, Student, load


def push(
    path: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload the student of a run, with its model card, to the Hub; returns its address there.

    Args:
        path: A run's folder, or a student's.
        repo_id: ``NAME/REPOSITORY``, made where there is none.
        private: Whether a repository that is made is private; None: as the account has it.
        token: Of the account; None: that of ``hf auth login`` or the environment's ``HF_TOKEN``.
        commit_message: Of the upload.

    Raises:
        UserError: no student there, or the Hub refuses or is out of reach.
    """
    folder = next((each for each in (Path(path) / "student", Path(path)) if _is_student(each)), None)
    if folder is None:
        raise UserError(
            f"No student at {str(path)!r}: expected a run folder, or one with config.json and "
            "model.safetensors."
        )
    readme = folder / "README.md"
    if not readme.is_file():
        write_text(readme, card(load(folder)))
    return _upload(folder, repo_id, private, token, commit_message)


def push_student(
    student: Student,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a student; see :meth:`gendd.Student.push_to_hub`."""
    with tempfile.TemporaryDirectory() as name:
        folder = student.save(name)
        write_text(folder / "README.md", student.card or card(student))
        return _upload(folder, repo_id, private, token, commit_message)


def _is_student(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors"))


def _upload(
    folder: Path, repo_id: str, private: bool | None, token: str | None, commit_message: str | None
) -> str:
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
