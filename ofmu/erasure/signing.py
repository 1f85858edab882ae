"""Sign evidence that lies unsigned. At every moment whole evidence lies in its place, or beside it."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ofmu.erasure.evidence import Evidence
from ofmu.erasure.evidence_files import write_evidence
from ofmu.erasure.signature import fingerprint
from ofmu.erasure.verify import read_with_hash
from ofmu.errors import EvidenceError, RunError
from ofmu.io.files import storage_errors

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def sign_once(record: Evidence, directory: Path, key: Ed25519PrivateKey) -> None:
    """Sign evidence that is unsigned. Evidence that this key has signed stays as it is.

    Raises:
        EvidenceError: another key has signed the evidence.
        RunError: as :func:`sign_evidence` raises it.
        StorageError: the disk refuses. The unsigned evidence stays.
    """
    if record.signature is None:
        sign_evidence(record, directory, key)
    elif record.signature.public_key_sha256 != fingerprint(key.public_key()):
        raise EvidenceError(
            f"{directory} is signed already, by the key with SHA-256 {record.signature.public_key_sha256}, which is "
            "not the given one: leave --key out"
        )


def sign_evidence(record: Evidence, directory: Path, key: Ed25519PrivateKey) -> None:
    """Put signed evidence in the place of unsigned evidence, once the signed evidence is whole.

    Call :func:`restore_evidence` first.

    Args:
        record: the record of the unsigned evidence, which :func:`ofmu.erasure.verify.read_intact` has accepted.
        directory: the directory of the unsigned evidence.
        key: signs the record.

    Raises:
        RunError: something lies where the unsigned evidence is kept until the signed evidence has its place.
        StorageError: the disk refuses. The unsigned evidence stays.
    """
    kept = _kept(directory)
    if os.path.lexists(kept):
        raise RunError(f"{kept} is in the way of the evidence that is signed: move it away, then run the command again")
    with storage_errors(directory), _folder_beside(directory) as made:
        signed = Path(made) / directory.name
        write_evidence(record, signed, key)
        try:
            directory.rename(kept)
            signed.rename(directory)
        except BaseException:
            if not directory.exists():
                kept.rename(directory)
            raise
        _delete(kept, made)


def restore_evidence(directory: Path) -> None:
    """Undo or complete what a killed :func:`sign_evidence` left. What it did not make stays.

    Raises:
        StorageError: the disk refuses.
    """
    kept = _kept(directory)
    left = _hash_of(kept)
    if left is None:
        return
    with storage_errors(directory):
        if not os.path.lexists(directory):
            kept.rename(directory)
        elif _hash_of(directory) == left:
            with _folder_beside(directory) as made:
                _delete(kept, made)


def _kept(directory: Path) -> Path:
    """Return where the unsigned evidence lies until the signed evidence has its place."""
    return directory.with_name(f".{directory.name}.unsigned")


def _folder_beside(directory: Path) -> TemporaryDirectory[str]:
    # The file system must be the same, since only then is a rename one step.
    return TemporaryDirectory(prefix=".ofmu.", dir=directory.parent)


def _delete(kept: Path, made: str) -> None:
    """Move the unsigned evidence into a folder that is deleted, so that no part of it keeps its name."""
    kept.rename(Path(made) / kept.name)


def _hash_of(directory: Path) -> str | None:
    """Return the hash of whole evidence, which a signature does not change; None for anything else."""
    if directory.is_symlink() or not directory.is_dir():
        return None
    try:
        return read_with_hash(directory)[1]
    except EvidenceError:
        return None
