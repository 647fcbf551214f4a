"""An exported folder on the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

#: What a hub, or a network that is not there, may answer.
_FAILURES = (OSError, HfHubHTTPError, ValueError)


class Repository:
    """A place on the hub that may be written, which is found out before anything is exported.

    Args:
        name: NAMESPACE/NAME.
        private: whether others see it, if it is new.

    Raises:
        ValueError: the name is none, there is no token, or the hub does not answer; the text says what to type.
    """

    def __init__(self, name: str, private: bool):
        self.name, self._private = name, private
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise ValueError(f"--push {name}: {' '.join(str(error).split())[:200]}") from None
        if name.count("/") != 1:
            raise ValueError(f"--push {name} names no namespace. Type: --push NAMESPACE/{name}")
        if get_token() is None:
            raise ValueError("--push needs a token of the hub, and none is set. Type: hf auth login")
        self._api = HfApi()
        try:
            self._api.whoami()
        except _FAILURES as error:
            raise ValueError(
                f"--push {name}: the hub does not know who asks ({_short(error)}). Check the network, or type: "
                "hf auth login"
            ) from None

    def upload(self, folder: Path) -> str:
        """Write a folder's files there; its address.

        Raises:
            ValueError: that failed; the folder is whole, and the text says what to type.
        """
        try:
            self._api.create_repo(self.name, private=self._private, exist_ok=True)
            self._api.upload_folder(repo_id=self.name, folder_path=folder, commit_message="Exported by cl_runner")
        except _FAILURES as error:
            private = " --private" if self._private else ""
            raise ValueError(
                f"{folder} is written, but not on the hub ({_short(error)}). "
                f"Type: hf upload {self.name} {folder}{private}"
            ) from None
        return f"https://huggingface.co/{self.name}"


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
