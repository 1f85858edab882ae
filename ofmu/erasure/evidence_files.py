"""Write the evidence directory: the record, its page, the page as PDF, and the signature."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from ofmu.erasure.evidence import Evidence, SignatureRecord
from ofmu.erasure.page import evidence_page
from ofmu.erasure.pdf import print_to_pdf
from ofmu.erasure.signature import fingerprint, public_pem
from ofmu.errors import RunError, StorageError
from ofmu.io.files import file_hash, storage_errors, write_bytes, write_text
from ofmu.io.folders import holds_something, new_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

RECORD = "evidence.json"
SIGNATURE = "evidence.sig"
PUBLIC_KEY = "public_key.pem"
PAGE = "report.html"
PDF = "report.pdf"
OWN_FILES = (RECORD, SIGNATURE, PUBLIC_KEY)
"""The files whose hashes the record cannot hold."""


def write_evidence(record: Evidence, directory: Path, key: Ed25519PrivateKey | None) -> None:
    """Write a new evidence directory in one step.

    Args:
        record: the record. Its files and its signature are replaced.
        directory: a directory that does not exist, or is empty.
        key: signs the record. None: the record stays unsigned, and says so.

    Raises:
        RunError: the directory holds something.
        StorageError: the disk refuses.
    """
    if directory.is_dir() and holds_something(directory):
        raise RunError(f"{directory} already holds files: move them away, then run the command again")
    signature = None if key is None else SignatureRecord(public_key_sha256=fingerprint(key.public_key()))
    record = record.model_copy(update={"signature": signature, "files": {}})
    with storage_errors(directory), new_folder(directory) as folder:
        write_text(folder / PAGE, evidence_page(record))
        try:
            print_to_pdf(folder / PAGE, folder / PDF)
        except StorageError as error:
            warnings.warn(f"the evidence has no {PDF}: {error}", stacklevel=2)
        hashes = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
        content = _as_json(record.model_copy(update={"files": hashes}))
        write_bytes(folder / RECORD, content)
        if key is not None:
            write_bytes(folder / SIGNATURE, key.sign(content))
            write_bytes(folder / PUBLIC_KEY, public_pem(key))


def _as_json(record: Evidence) -> bytes:
    return (json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
