"""Check an evidence directory: its files, its signature, and the model that it speaks of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ofmu.erasure.evidence import FORMAT, Evidence, differing_files, evidence_hash, files_of, review_record
from ofmu.erasure.evidence_files import OWN_FILES, PUBLIC_KEY, RECORD, SIGNATURE
from ofmu.erasure.signature import fingerprint, is_signature, parse_public_key, read_public_key
from ofmu.erasure.workspace import EVIDENCE, Workspace
from ofmu.errors import ConfigError, EvidenceError
from ofmu.io.cache import model_hashes
from ofmu.io.files import check_regular, file_hash, looked_for

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_MAX_BYTES = 2**30
ASK_AUTHOR = "ask its author for the original"
"""The fix for evidence that was altered."""


@dataclass(frozen=True)
class VerifiedEvidence:
    """Evidence whose files and signature are as its author left them."""

    directory: Path
    record: Evidence
    signer: str
    """SHA-256 (hex) of the signer's public key in DER."""
    is_known_signer: bool
    """Whether the caller gave this key. Otherwise anybody may be the signer."""
    review: Path | None = None
    """The file of rows to review, if it lies in the request's directory and is that of the evidence."""


def verify_evidence(
    directory: str | Path, *, public_key: str | Path | None = None, model: str | Path | None = None
) -> VerifiedEvidence:
    """Check the signature of ``evidence.json``, and the hashes of all files that it lists.

    Args:
        directory: the evidence, or the directory of ``ofmu forget``.
        public_key: PEM file of the key that must have signed. None: the key that lies in the directory.
        model: directory of a model that must be the result of the erasure.

    Raises:
        EvidenceError: the directory holds no evidence, a file was altered, is missing or was added, the record is not
            signed, another key signed it, or ``model`` is another model. Or the rows to review, which lie beside the
            evidence in the directory of ``ofmu forget``, were altered.
        ConfigError: ``public_key`` holds no Ed25519 public key.
    """
    expected = None if public_key is None else read_public_key(Path(public_key))
    place = evidence_in(Path(directory))
    content = _read(place / RECORD)
    record = _parse(content, place)
    if record.signature is not None:
        _check_signature(content, record.signature.public_key_sha256, place, expected)
    _check_files(record, place)
    if record.signature is None:
        raise EvidenceError(
            f"{place} is not signed, so anybody may have changed it: sign it by running ofmu forget again with --key"
        )
    if model is not None:
        _check_model(record, Path(model))
    review = _checked_review(record, place)
    return VerifiedEvidence(place, record, record.signature.public_key_sha256, expected is not None, review)


def read_intact(directory: Path) -> Evidence:
    """Return the record of an evidence directory, signed or not, whose files have the listed hashes.

    Raises:
        EvidenceError: a file was altered, is missing or was added.
    """
    return read_with_hash(directory)[0]


def read_with_hash(directory: Path) -> tuple[Evidence, str]:
    """Return the record of an evidence directory, and the hash by which a later request names it.

    The files have the listed hashes. A record that states a signature has that signature.

    Raises:
        EvidenceError: a file was altered, is missing or was added, or the signature is wrong.
    """
    content = _read(directory / RECORD)
    record = _parse(content, directory)
    if record.signature is not None:
        _check_signature(content, record.signature.public_key_sha256, directory, None)
    _check_files(record, directory)
    return record, evidence_hash(content)


def _check_signature(content: bytes, stated: str, place: Path, expected: Ed25519PublicKey | None) -> None:
    """Check the signature of the record, and that its key is the one that the record states."""
    if expected is not None and fingerprint(expected) != stated:
        raise EvidenceError(
            f"{place} is signed with another key (SHA-256 {stated}) than the expected one (SHA-256 "
            f"{fingerprint(expected)}): {ASK_AUTHOR}, or name the key of its author"
        )
    try:
        key = parse_public_key(_read(place / PUBLIC_KEY), str(place / PUBLIC_KEY))
    except ConfigError as error:
        raise EvidenceError(f"{place / PUBLIC_KEY} was altered ({error}): {ASK_AUTHOR}") from None
    if fingerprint(key) != stated:
        raise EvidenceError(f"{place / PUBLIC_KEY} is not the key that {RECORD} states: {ASK_AUTHOR}")
    if not is_signature(key, _read(place / SIGNATURE), content):
        raise _altered(place)


def _altered(place: Path) -> EvidenceError:
    return EvidenceError(
        f"The signature does not fit: {place / RECORD} or {SIGNATURE} was changed after it was signed: {ASK_AUTHOR}"
    )


def _check_bytes(content: bytes, place: Path) -> None:
    """Check the signature of a record that has another format. Evidence without a signature passes.

    The record cannot state its key, so the key is the one beside it.
    """
    if not (place / SIGNATURE).exists():
        return
    try:
        key = parse_public_key(_read(place / PUBLIC_KEY), str(place / PUBLIC_KEY))
    except ConfigError:
        raise _altered(place) from None
    if not is_signature(key, _read(place / SIGNATURE), content):
        raise _altered(place)


def evidence_in(directory: Path) -> Path:
    """Return the evidence directory that is, or lies in, a directory.

    Raises:
        EvidenceError: there is none.
    """
    if not directory.is_dir():
        raise EvidenceError(f"There is no directory {looked_for(directory)}: check the path")
    place = directory if (directory / RECORD).exists() else directory / EVIDENCE
    if not (place / RECORD).is_file():
        raise EvidenceError(f"{directory} holds no {RECORD}: name the directory of the evidence, or of ofmu forget")
    return place


def _parse(content: bytes, place: Path) -> Evidence:
    try:
        return Evidence.model_validate_json(content)
    except ValidationError as error:
        _check_bytes(content, place)
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise EvidenceError(
            f"{place / RECORD} is no record of the format {FORMAT} ({where + ': ' if where else ''}{first['msg']}): "
            f"{ASK_AUTHOR}"
        ) from None


def _check_files(record: Evidence, place: Path) -> None:
    for name, expected in record.files.items():
        if Path(name).name != name or name in OWN_FILES:
            raise EvidenceError(f"{place / RECORD} lists the file '{name:.80}', which no evidence has: {ASK_AUTHOR}")
        path = place / name
        if path.is_symlink() or not path.is_file():
            raise EvidenceError(f"{path} is missing, and {RECORD} lists it: {ASK_AUTHOR}")
        if file_hash(path) != expected:
            raise EvidenceError(f"{path} was altered, since its hash is not the one in {RECORD}: {ASK_AUTHOR}")
    known = {*record.files, RECORD, *((SIGNATURE, PUBLIC_KEY) if record.signature is not None else ())}
    added = sorted(path.name for path in place.iterdir() if path.name not in known and not path.name.startswith("."))
    if added:
        raise EvidenceError(
            f"{place / added[0]} is not listed in {RECORD}, so it was added: remove it, or {ASK_AUTHOR}"
        )


def _checked_review(record: Evidence, place: Path) -> Path | None:
    """Return the file of rows to review after its check; None if the file, or the key of its hash, is not there.

    The file holds rows in clear, so who gets the evidence does not get the file, and the user may delete it.
    """
    place = place.absolute()
    home, expected = Workspace(place.parent), record.request.review
    if expected is None or place.name != EVIDENCE or not home.review.is_file():
        return None
    state = home.state()
    if state is None or state.get("id") != record.request.id:
        return None
    text = _read(home.review).decode(errors="replace")
    if review_record(text, home.hash_key()) != expected:
        raise EvidenceError(
            f"{home.review} was altered, since its hash is not the one in {RECORD}: restore it from a copy"
        )
    return home.review


def _check_model(record: Evidence, model: Path) -> None:
    if not model.is_dir():
        raise EvidenceError(f"There is no model directory {looked_for(model)}: check the path")
    found = model_hashes(model)
    differing = differing_files(files_of(record, "result"), found)
    missing = [name for name in differing if name not in found]
    changed = [name for name in differing if name in found]
    problems = [f"it lacks {', '.join(missing)}"] if missing else []
    problems += [f"its {', '.join(changed)} has other content"] if changed else []
    if problems:
        raise EvidenceError(f"{model} is not the model of the evidence, since {' and '.join(problems)}: check the path")


def _read(path: Path) -> bytes:
    try:
        if path.is_symlink():
            raise EvidenceError(f"{path} is a link, and evidence has none: {ASK_AUTHOR}")
        check_regular(path, _MAX_BYTES)
        return path.read_bytes()
    except FileNotFoundError:
        raise EvidenceError(f"{path} is missing: {ASK_AUTHOR}") from None
    except OSError as error:
        raise EvidenceError(f"{path} cannot be read: {error.strerror or error}") from error
