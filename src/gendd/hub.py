"""Students on the Hugging Face Hub: a student's folder is a repository as it stands."""

from __future__ import annotations

from pathlib import Path

from gendd.errors import UserError
from gendd.online import hub_or_cache, unreached

# of a student's folder, which may hold what was exported from it too
FILES = ("README.md", "config.json", "model.safetensors")


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload a student's folder; returns its address.

    Args:
        folder: With model card, configuration and weights.
        repo_id: ``NAME/REPOSITORY``, made where there is none.
        private: Whether a repository that is made is private; None: as the account has it.
        token: Of the account; None: that of ``hf auth login`` or the environment's ``HF_TOKEN``.
        commit_message: Of the upload.

    Raises:
        UserError: the Hub refuses or is out of reach.
    """
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
