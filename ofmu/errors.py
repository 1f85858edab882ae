"""The errors a user can cause. Each message is one sentence that names the thing and says how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class OfmuError(ValueError):
    """Root of every error that is the user's to mend; the command line prints it without a traceback."""


class ConfigError(OfmuError):
    """A setting that is unknown, out of range, or contradicts another."""


class DataError(OfmuError):
    """A data file that is missing, malformed, or inconsistent with its companions."""


class ModelError(OfmuError):
    """A model directory that lacks something, or cannot do what was asked of it."""


class ReferenceMismatchError(OfmuError):
    """Reference scores that were made on other rows, or under another truth-ratio definition."""


class NonFiniteLossError(OfmuError):
    """A loss or gradient became NaN or infinite during a run."""


class StorageError(OfmuError):
    """A write failed: a full disk, a read-only directory."""


class ClusterError(OfmuError):
    """The Ray cluster is unreachable, or smaller than the run asks for."""


class RunError(OfmuError):
    """A directory that is not a run, or a run in the wrong state for what was asked."""


class PrunedError(Exception):
    """A run that was ended early because others do better: no failure, and nothing for the user to mend.

    ``account``, in JSON values, says after which ``round`` of how many (``total``), on what ``objectives``, and the
    ``metrics`` of what the run had cost by then.
    """

    def __init__(self, account: Mapping[str, Any]) -> None:
        super().__init__(dict(account))

    def __str__(self) -> str:
        return f"stopped early, after round {self.account['round']} of {self.account['total']}"

    @property
    def account(self) -> dict[str, Any]:
        """Return the account, as a mapping of its own."""
        return dict(self.args[0])


def nearest_name(name: str, known: Iterable[str], section: str = "") -> str:
    """Return a hint such as ``did you mean 'method.inner_steps'?``, or the list of valid names when none is close.

    ``section``, such as ``method.``, is put before the name that is offered, so that it can be copied as it stands.
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{section}{close[0]}'?" if close else f"valid names are {', '.join(names)}"
