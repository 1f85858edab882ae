"""The software that ran an erasure: its version, a hash of its source files, and the versions of packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ofmu.erasure.evidence import CodeRecord, json_hash
from ofmu.io.environment import environment
from ofmu.io.files import file_hash


def code_record(packages: Sequence[Path]) -> CodeRecord:
    """Return the record of the software.

    Args:
        packages: folders of the packages whose source files are hashed.
    """
    found = environment()
    versions = dict(found["versions"])
    return CodeRecord(
        version=str(versions.pop("ofmu", "unknown")),
        hash=json_hash(source_hashes(packages)),
        python=str(found["python"]),
        versions=versions,
    )


def source_hashes(packages: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 (hex) of each Python file and template, by its path from the package's parent."""
    return {
        path.relative_to(package.parent).as_posix(): file_hash(path)
        for package in packages
        for path in sorted(package.rglob("*"))
        if path.suffix in (".py", ".j2", ".css", ".js", ".yaml") and path.is_file()
    }
