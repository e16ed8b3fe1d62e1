"""Upload a folder of weights to the Hugging Face hub. Nothing is uploaded unless the user asks for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from distilens.foundation.errors import UserError

LOGIN = "log in with: hf auth login (or set HF_TOKEN to a token with write access)"


def push_to_hub(folder: str | Path, repo: str, *, private: bool = True, token: str | None = None) -> str:
    """Upload the files of a folder to a model repository, which is made if it does not exist; returns its address.

    Args:
        folder: the folder `hub` of an export.
        repo: the repository, `OWNER/NAME`.
        private: whether a new repository is private; an existing one stays as it is.
        token: a token with write access; by default the one of `hf auth login` or of HF_TOKEN.

    Raises:
        UserError: there is no model in the folder, the name is wrong, the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"there is no model in {folder}: distilens export ... --format safetensors makes it")
    check_push(repo, token)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    with explain_upload_errors(repo, api.endpoint):
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload a model of distilens")
    return str(made)


def check_push(repo: str, token: str | None = None) -> None:
    """Raise a `UserError` if the name cannot be a repository, or if the user is not logged in. It needs no network."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo!r} cannot be a repository of the hub: {str(error).splitlines()[0]}") from None
    if repo.count("/") != 1:
        raise UserError(f"{repo!r} does not name a repository of the hub: OWNER/NAME")
    if not (token or get_token()):
        raise UserError(f"you are not logged in to the Hugging Face hub: {LOGIN}")


@contextlib.contextmanager
def explain_upload_errors(repo: str, endpoint: str) -> Iterator[None]:
    """Turn the errors of an upload into a `UserError` that says what the user can do."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    owner = repo.partition("/")[0]
    try:
        yield
    except HfHubHTTPError as error:
        reasons = {
            401: f"the hub does not accept the token: {LOGIN}",
            403: f"you may not write to {owner}, or the token has no write access: {LOGIN}",
            404: f"the hub has no user and no organisation {owner}, or you may not see it",
        }
        status = error.response.status_code
        said = error.server_message or f"status {status}"
        raise UserError(f"{repo} was not uploaded: {reasons.get(status, f'the hub answered: {said}')}") from error
    except OfflineModeIsEnabled:
        raise UserError(f"{repo} was not uploaded: HF_HUB_OFFLINE is set. Unset it to use the network") from None
    except Exception as error:  # of the HTTP library, which differs between versions of huggingface_hub
        raise UserError(
            f"{repo} was not uploaded: {endpoint} cannot be reached, or the upload broke off. Try again ({error})"
        ) from error
