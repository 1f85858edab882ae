"""The requests before one request: an earlier request's directory is opened, checked and handed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ofmu.chain.records import EarlierRequestRecord
from ofmu.chain.rows import EarlierRows
from ofmu.chain.run_of_model import forgotten_before
from ofmu.data.rows import Row
from ofmu.erasure.evidence import Evidence, differing_files, files_of, rows_record
from ofmu.erasure.evidence_files import RECORD
from ofmu.erasure.verify import read_with_hash
from ofmu.erasure.workspace import EVIDENCE, FORMAT, RESULT, STATE, Workspace
from ofmu.errors import EvidenceError, ModelError, RunError
from ofmu.io.cache import model_hashes
from ofmu.io.files import expanded, looked_for
from ofmu.models.files import check_model_directory
from ofmu.models.hub import local_directory
from ofmu.run_files import check_is_no_link, check_no_links, made_by_ofmu, stored_values


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The requests before one request, the oldest first. The model of that request is the last one's result."""

    path: Path
    """The directory of the last request."""
    record: Evidence
    """The evidence of the last request."""
    hash: str
    """See :func:`ofmu.erasure.evidence.evidence_hash`."""
    earlier: tuple[EarlierRows, ...]
    runs: tuple[EarlierRows, ...] = ()
    """The rows that were forgotten before the first request: see :func:`forgotten_before_chain`."""
    first_target: str
    """Directory or hub name of the target of the first request."""

    @property
    def first_target_files(self) -> Mapping[str, str]:
        """The hashes of the first target's files."""
        return files_of(self.record, "first_target" if self.record.chain is not None else "target")

    @property
    def prompts(self) -> Mapping[str, Any]:
        """How the last request turned rows into tokens, as keys of the section ``data``."""
        return dict(self.earlier[-1].scoring["data"])

    def own_request(self) -> EarlierRequestRecord:
        """Return the record of the last request, without metrics."""
        record = self.record
        return EarlierRequestRecord(
            id=record.request.id,
            finished=record.finished,
            hash=self.hash,
            public_key_sha256=None if record.signature is None else record.signature.public_key_sha256,
            forget_rows=len(self.earlier[-1].forget),
            metrics=[],
            gradient_evaluations=record.cost.gradient_evaluations,
            run_seconds=record.cost.run_seconds,
        )

    def check_first_target(self) -> Path:
        """Return the directory of the first target, with which utility is compared.

        Raises:
            ModelError: it is gone, or was changed.
        """
        fix = f"put the model back, or leave --after {self.path} out to start a new chain"
        try:
            check_model_directory(self.first_target)
            place = local_directory(self.first_target)
        except ModelError as error:
            raise ModelError(
                f"Utility is compared with the first target of the chain, and {self.first_target} holds no model any "
                f"more ({str(error).partition(':')[0]}): {fix}"
            ) from None
        differing = differing_files(self.first_target_files, model_hashes(place))
        if differing:
            raise ModelError(
                f"Utility is compared with the first target of the chain, and {', '.join(differing)} of "
                f"{self.first_target} changed since its request: {fix}"
            )
        return place


def open_chain(after: str | Path, model: str, *, signs: bool) -> Chain:
    """Open the directory of a complete request, to work on a request after it. Nothing is written.

    Args:
        after: the directory that was the ``--output`` of the earlier request.
        model: the model of the new request, which must be the earlier request's result.
        signs: whether the new request's evidence will be signed. Then the earlier evidence must be signed too.

    Raises:
        RunError: the directory is none of ``ofmu forget``, the request is not complete, or a file is damaged or gone.
        EvidenceError: the evidence was altered, is not signed although ``signs``, or is another request's.
        ModelError: ``model`` is not the earlier request's result.
    """
    home = _request_in(Path(after))
    content_hash, record = _evidence_of(home, signs=signs)
    _check_is_result(record, model, home)
    earlier = home.chain_rows()
    _check_rows(home, record, earlier)
    state = home.state() or {}
    with stored_values(home.path / STATE):
        first_target = str(state["places"]["first_target"])
    return Chain(
        path=home.path,
        record=record,
        hash=content_hash,
        earlier=earlier,
        runs=home.rows_of_runs(),
        first_target=first_target,
    )


def forgotten_before_chain(model: str) -> tuple[EarlierRows, ...]:
    """Return the rows that were forgotten to make the model of a first request, by runs or by requests.

    Raises:
        RunError: the rows cannot be read, or changed since. A request would then retain them unseen.
    """
    place = expanded(model).resolve()
    home = Workspace(place.parent)
    if place != home.result or not home.is_ours():
        found = forgotten_before(model)
        return () if found is None else (found,)
    if not home.evidence.is_dir():
        raise RunError(f"{model} is of a request that is not complete: finish the request in {home.path} first")
    return (*home.rows_of_runs(), *(replace(each, is_run=True) for each in home.chain_rows()))


def _request_in(after: Path) -> Workspace:
    """Return the directory of a complete request."""
    if not after.is_dir():
        raise RunError(f"There is no directory {looked_for(after)}: name the --output of an earlier ofmu forget")
    home = Workspace(after.absolute())
    for name in (STATE, EVIDENCE, RESULT, "rows"):
        check_is_no_link(home.path / name)
    state = home.state()
    if state is None or state.get("format") != FORMAT:
        hint = " (after a run, use ofmu unlearn --after)" if made_by_ofmu(after) else ""
        raise RunError(f"{after} is no directory of ofmu forget{hint}: name the --output of an earlier ofmu forget")
    if not home.evidence.is_dir():
        raise RunError(
            f"The request in {after} is not complete, since it has no evidence yet: finish it with its own command"
        )
    check_no_links(home.evidence)
    return home


def _evidence_of(home: Workspace, *, signs: bool) -> tuple[str, Evidence]:
    record, content_hash = read_with_hash(home.evidence)
    if record.signature is None and signs:
        raise EvidenceError(
            f"{home.evidence} is not signed, and signed evidence cannot follow it: sign it first, with its own command "
            "and --key FILE"
        )
    state = home.state() or {}
    if state.get("id") != record.request.id:
        raise EvidenceError(
            f"{home.evidence / RECORD} is that of the request '{record.request.id:.80}', and {home.path} holds another "
            "one: restore the evidence of that directory"
        )
    return content_hash, record


def _check_is_result(record: Evidence, model: str, home: Workspace) -> None:
    check_model_directory(model)
    differing = differing_files(files_of(record, "result"), model_hashes(local_directory(model)))
    if differing:
        raise ModelError(
            f"{model} is not the model that the request in {home.path} left, since {', '.join(differing)} differ: the "
            f"next request starts from {home.result}"
        )


def _check_rows(home: Workspace, record: Evidence, earlier: tuple[EarlierRows, ...]) -> None:
    """Check that the rows in clear are those of the evidence."""
    stated = next(rows for rows in record.request.rows if rows.role == "forget")
    if _hash_of(earlier[-1].forget, home.hash_key()) != stated.hash:
        raise EvidenceError(
            f"{home.rows_file('forget')} holds other rows than the evidence in {home.evidence}: restore it from a copy"
        )
    ids = [] if record.chain is None else [request.id for request in record.chain.requests]
    if [request.id for request in earlier[:-1]] != ids:
        raise EvidenceError(
            f"{home.path / 'rows'} holds the rows of other earlier requests than those that the evidence in "
            f"{home.evidence} names: restore it from a copy"
        )


def _hash_of(rows: tuple[Row, ...], key: bytes) -> str:
    return rows_record("forget", rows, "", key, show=False).hash
