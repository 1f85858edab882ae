"""Credentials of a bucket, on their way from the driver to the processes of the trials.

Ray Tune would put them into the runtime environment of each trial, which Ray stores and logs in clear. Here they travel
through Ray's object store, which is memory, and only to the processes that need them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")
"""The variables of the environment that Ray Tune would copy."""


class Credentials(dict[str, str]):
    """Variables of the environment whose values no log shows."""

    def __repr__(self) -> str:
        return f"Credentials({', '.join(self)})"


def found_credentials() -> Credentials:
    """Return the credentials in this process's environment."""
    return Credentials({name: os.environ[name] for name in CREDENTIALS if name in os.environ})


def set_credentials(credentials: Mapping[str, str]) -> None:
    """Set the credentials in this process's environment. A node's own credentials stay."""
    if not any(name in os.environ for name in CREDENTIALS):
        os.environ.update(credentials)
