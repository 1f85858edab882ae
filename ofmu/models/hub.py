"""Why the hub gave nothing, as one plain clause in place of a library's paragraph."""

from __future__ import annotations

from collections.abc import Iterator


def hub_reason(error: BaseException) -> str:
    """Return why a hub name could not be loaded and how to mend it, from what the hub's libraries raised.

    The first error that says something stands somewhere in the chain of causes, since transformers wraps those of
    huggingface_hub.
    """
    from huggingface_hub import constants, errors

    unreachable = "the hub cannot be reached and its cache on this machine lacks it: check the connection"
    if constants.HF_HUB_OFFLINE:
        unreachable = "HF_HUB_OFFLINE forbids to ask the hub, whose cache on this machine lacks it: unset that variable"
    known: tuple[tuple[type[Exception], str], ...] = (
        (errors.HFValidationError, "it is no valid hub name either: check the path, or give a name like 'org/model'"),
        (errors.GatedRepoError, "the hub gives it on request only: ask for access there, then run 'hf auth login'"),
        (
            errors.RepositoryNotFoundError,
            "the hub has nothing public of that name: check the name, or run 'hf auth login' if it is private",
        ),
        (errors.RevisionNotFoundError, "the hub has no such revision of it: check the revision's name"),
        (errors.LocalEntryNotFoundError, unreachable),
        (errors.OfflineModeIsEnabled, unreachable),
        (errors.EntryNotFoundError, "what the hub has under that name lacks a file of a model: check the name"),
    )
    for link in _chain(error):
        for kind, clause in known:
            if isinstance(link, kind):
                return clause
    return "the hub gave nothing of that name: check the name and the connection"


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
