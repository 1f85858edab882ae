"""Check the links of a chain: whether the earlier evidence is that which later evidence names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ofmu.chain.records import EarlierRequestRecord
from ofmu.erasure.evidence import Evidence, differing_files, files_of
from ofmu.erasure.evidence_files import RECORD
from ofmu.erasure.verify import ASK_AUTHOR, evidence_in, read_with_hash
from ofmu.erasure.workspace import EVIDENCE, FORMAT, STATE
from ofmu.errors import EvidenceError
from ofmu.run_files import read_stored


@dataclass(frozen=True)
class CheckedLinks:
    """The earlier requests that evidence names."""

    checked: tuple[str, ...]
    """Names of the requests whose evidence is that which was named."""
    unchecked: tuple[str, ...]
    """Names of the requests whose evidence was not at hand."""


def check_links(record: Evidence, place: Path, given: Sequence[str | Path] = ()) -> CheckedLinks:
    """Check the evidence of earlier requests against what a record says of it.

    Args:
        record: the record of the last request.
        place: its evidence directory. If it lies in the directory of ``ofmu forget``, the earlier directories that are
            named there are checked as well, where they still exist.
        given: further directories with earlier evidence, in any order.

    Raises:
        EvidenceError: earlier evidence was altered, is not part of the chain, has lost its signature, or does not
            continue to the next request.
    """
    requests = [] if record.chain is None else record.chain.requests
    known = {request.hash: number for number, request in enumerate(requests)}
    found: dict[int, Evidence] = {}
    for directory in (*(Path(each) for each in given), *_directories_before(place, len(requests))):
        source = evidence_in(directory)
        earlier, content_hash = read_with_hash(source)
        number = known.get(content_hash)
        if number is None:
            raise EvidenceError(
                f"{source} is not the evidence of an earlier request that {place / RECORD} names, so one of them was "
                f"altered or belongs to another chain: {ASK_AUTHOR}"
            )
        _check_signer(earlier, requests[number], source)
        found[number] = earlier
    _check_order(record, place, requests, found)
    names = [request.id for request in requests]
    return CheckedLinks(
        checked=tuple(name for number, name in enumerate(names) if number in found),
        unchecked=tuple(name for number, name in enumerate(names) if number not in found),
    )


def _directories_before(place: Path, count: int) -> list[Path]:
    """Return the directories of the requests before one, as ``request.json`` names them, as far as they exist."""
    found: list[Path] = []
    home = place.absolute().parent
    while len(found) < count:
        state = read_stored(home / STATE) or {}
        after = (state.get("places") or {}).get("after") if state.get("format") == FORMAT else None
        if not isinstance(after, str) or not (Path(after) / EVIDENCE / RECORD).is_file():
            break
        home = Path(after)
        found.append(home)
    return found


def _check_signer(earlier: Evidence, named: EarlierRequestRecord, source: Path) -> None:
    signer = None if earlier.signature is None else earlier.signature.public_key_sha256
    if named.public_key_sha256 is not None and signer != named.public_key_sha256:
        how = "is not signed" if signer is None else f"is signed with the key with SHA-256 {signer}"
        raise EvidenceError(
            f"{source} {how}, and the next request followed evidence that was signed with the key with SHA-256 "
            f"{named.public_key_sha256}: {ASK_AUTHOR}"
        )


def _check_order(
    record: Evidence, place: Path, requests: Sequence[EarlierRequestRecord], found: Mapping[int, Evidence]
) -> None:
    """Check that each request started from the result of the one before, and names the same earlier requests."""
    records = {**found, len(requests): record}
    for number, later in sorted(records.items()):
        named = [] if later.chain is None else [(each.id, each.hash) for each in later.chain.requests]
        if named != [(each.id, each.hash) for each in requests[:number]]:
            raise EvidenceError(
                f"The evidence of the request '{later.request.id:.80}' names other earlier requests than "
                f"{place / RECORD} does: {ASK_AUTHOR}"
            )
        before = records.get(number - 1)
        if before is not None and differing_files(files_of(before, "result"), files_of(later, "target")):
            raise EvidenceError(
                f"The request '{later.request.id:.80}' did not start from the model that the request "
                f"'{before.request.id:.80}' left: {ASK_AUTHOR}"
            )
    if 0 in found and requests and files_of(found[0], "target") != files_of(record, "first_target"):
        raise EvidenceError(
            f"The first target in {place / RECORD} is not the target of the request '{found[0].request.id:.80}': "
            f"{ASK_AUTHOR}"
        )
