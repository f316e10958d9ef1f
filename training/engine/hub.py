"""The Hub: whether a push will be possible, the push itself in one commit, and what it would contain."""

from collections.abc import Sequence
from pathlib import Path

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..settings.training_settings import TrainingSettings

REFUSALS = (HfHubHTTPError, httpx.HTTPError, OSError)
"""What the client raises without token, right, network or answer."""


def check_hub_access(settings: TrainingSettings) -> None:
    """Before the first step: whether `--push_to_hub` will be possible. Does nothing without it.

    The repository is made where it does not exist: only this shows that the token may write there.

    Raises:
        ValueError: the Hub would refuse the repository's name, there is no token that may write, or the Hub does not answer.
    """
    if not settings.push_to_hub:
        return
    check_repository_name(settings.repository)
    if not settings.dry_run:
        make_repository(settings.repository)


def check_repository_name(repository: str) -> None:
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(
            f"the Hub takes no repository named {repository!r}: pass --hub_model_id OWNER/NAME ({error})"
        ) from error


def make_repository(repository: str, **kind) -> str:
    """The full name of the repository, `owner/name`, which exists afterwards. Raises ValueError where that is not possible.

    Args:
        kind: `repo_type` and what `HfApi.create_repo` wants to know of it; none for a model.
    """
    api = HfApi()
    try:
        api.whoami()
        return api.create_repo(repository, exist_ok=True, **kind).repo_id
    except REFUSALS as error:
        raise ValueError(
            f"--push_to_hub cannot write to {repository} ({first_line(error)}). Log in by `hf auth login` with a token that "
            "may write there, choose another --hub_model_id, or leave --push_to_hub out"
        ) from error


def push_folder(folder: str | Path, repository: str, message: str) -> str:
    """Uploads all files of `folder` in one commit; returns its address.

    Raises:
        ValueError: the Hub refused; the message names the command that tries again.
    """
    try:
        repo_id = make_repository(repository)
        return HfApi().upload_folder(folder_path=folder, repo_id=repo_id, commit_message=message).commit_url
    except (ValueError, *REFUSALS) as error:
        raise ValueError(
            f"{folder} is complete but was not pushed ({first_line(error)}). Push it by: "
            f"python -m training.push_to_hub {folder} --hub_model_id {repository}"
        ) from error


def push_space(folder: Path, repository: str, allow: Sequence[str], ignore: Sequence[str]) -> str:
    """Uploads the files of `folder` that fit the patterns to a Gradio Space in one commit; returns its address.

    Raises:
        ValueError: the Hub refused.
    """
    try:
        repo_id = make_repository(repository, repo_type="space", space_sdk="gradio")
        commit = HfApi().upload_folder(
            folder_path=folder, repo_id=repo_id, repo_type="space", allow_patterns=list(allow), ignore_patterns=list(ignore),
            commit_message="app, package, training code and checkpoints",
        )  # fmt: skip
        return commit.commit_url
    except (ValueError, *REFUSALS) as error:
        raise ValueError(f"the Space {repository} was not pushed ({first_line(error)}). Try the same command again") from error


def describe_push(folder: str | Path, repository: str, files: Sequence[Path] | None = None) -> str:
    """What would be sent: a line per file, with its size in bytes.

    Args:
        files: those of the folder that would go (default: all).
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if files is None else files
    lines = [f"{path.stat().st_size:>12,}  {path.relative_to(folder).as_posix()}" for path in files]
    total = sum(path.stat().st_size for path in files)
    return "\n".join([f"{repository}: {len(files)} files, {total / 1e6:.1f} MB, in one commit", *lines])


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200].rstrip(".") or type(error).__name__
