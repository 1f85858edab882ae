"""Upload a saved model to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from ofmu.errors import ModelError

_LEFT_OUT = ("metrics.json", "config.yaml")
"""Files of an exported model that name paths and machines. The model card has their content without those."""
_FIRST_FILES = {".gitattributes"}
"""What a new repository on the hub holds."""


def check_upload(repository: str) -> None:
    """Check what can be checked of an upload without the hub: the name, the login, and that the hub is not blocked.

    Raises:
        ModelError: the name has another form than ``owner/name``, there is no login, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it is there, but not listed

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ModelError(f"'{repository}' is no name on the hub: give one like 'org/model'") from error
    if "/" not in repository:
        raise ModelError(f"'{repository}' names no owner on the hub: give a name like 'org/{repository}'")
    if constants.HF_HUB_OFFLINE:
        raise ModelError("HF_HUB_OFFLINE blocks the hub, so no model can be uploaded: unset that variable")
    if get_token() is None:
        raise ModelError(
            "There is no login for the hub: run 'hf auth login', or set HF_TOKEN to a token that can write"
        )


def upload_model(directory: Path, repository: str, *, public: bool = False) -> str:
    """Upload the files of a model to a new or an empty repository, in one commit, and return the repository's URL.

    Args:
        directory: the model's directory.
        repository: ``owner/name``.
        public: whether everybody may see a repository that this call makes. An existing one keeps its visibility.

    Raises:
        ModelError: see :func:`check_upload`; the repository holds files; or the hub refuses or cannot be reached.
    """
    # The library of the hub is slow to import.
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_upload(repository)
    api = HfApi()
    try:
        url = api.create_repo(repository, private=not public, exist_ok=True)
        files = sorted(set(api.list_repo_files(repository)) - _FIRST_FILES)
        if files:
            raise ModelError(
                f"The repository {repository} on the hub already holds {files[0]}, and nothing there is replaced: name "
                "a new repository"
            )
        api.upload_folder(
            repo_id=repository,
            folder_path=directory,
            ignore_patterns=list(_LEFT_OUT),
            commit_message="Add the unlearned model",
        )
    except ModelError:
        raise
    except HfHubHTTPError as error:
        raise ModelError(f"The hub refuses the upload to {repository}, since {_refusal(error)}") from error
    except Exception as error:
        # The library's own network client, which its versions change, may raise anything.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"The upload to {repository} failed ({reason}): check the connection, then repeat it"
        ) from error
    return str(url)


def _refusal(error: Exception) -> str:
    """Return why the hub refused, and the fix."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "it does not know the login: run 'hf auth login', or set HF_TOKEN to a valid token"
    if status == 403:
        return "the login may not write there: use a token that can write, and an owner that you belong to"
    message = " ".join((getattr(error, "server_message", None) or str(error)).split())[:200]
    return f"it says: {message}; check the name and the token"
