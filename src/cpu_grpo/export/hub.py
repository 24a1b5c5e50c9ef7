"""Puts an export on the Hugging Face Hub, or on another server that speaks as it does (HF_ENDPOINT)."""

from pathlib import Path

from cpu_grpo.config.names import is_hub_name
from cpu_grpo.errors import UserError


def check_push(repository: str) -> None:
    """Raises UserError, before any work, where a push to `owner/name` could not even begin."""
    from huggingface_hub import get_token

    if "/" not in repository or not is_hub_name(repository):
        raise UserError(f"--push {repository} is no repository: give it as owner/name.")
    if not get_token():
        raise UserError("--push needs a token that may write: run `hf auth login`, or set HF_TOKEN to one.")


def push(directory: Path, repository: str, message: str) -> str:
    """Uploads all of the directory in one commit; returns its address. A repository that is not there is made, private.

    Raises:
        UserError: the server cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        done = api.upload_folder(repo_id=repository, folder_path=directory, commit_message=message)
    except Exception as error:  # of HTTP, connection and the hub's own types, which share no base class
        raise UserError(
            f"{repository} could not be pushed to ({_reason(error)}): the export lies whole in {directory}, so check "
            f"{_remedy(error)} and run the same command again."
        ) from error
    return str(done.commit_url)


def _status(error: Exception) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _reason(error: Exception) -> str:
    status = _status(error)
    return f"the server answered {status}" if status else type(error).__name__


def _remedy(error: Exception) -> str:
    status = _status(error)
    if status in (401, 403):
        return "that the token may write there"
    return "the name" if 400 <= status < 500 else "the connection"
