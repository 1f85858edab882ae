"""Evidence that is signed later is never lost, wherever the signing is interrupted."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from evidence_records import record
from ofmu.erasure import evidence_files
from ofmu.erasure.evidence_files import write_evidence
from ofmu.erasure.signing import restore_evidence, sign_evidence, sign_once
from ofmu.erasure.verify import read_intact, verify_evidence
from ofmu.errors import EvidenceError, RunError, StorageError

pytestmark = pytest.mark.usefixtures("without_pdf")

KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def unsigned(tmp_path: Path) -> Path:
    write_evidence(record(), tmp_path / "evidence", None)
    return tmp_path / "evidence"


def content_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_signed_evidence_takes_the_place_of_unsigned(unsigned: Path, tmp_path: Path):
    sign_evidence(read_intact(unsigned), unsigned, KEY)
    assert verify_evidence(unsigned).record.metrics == record().metrics
    assert names_in(tmp_path) == ["evidence"]


def test_another_key_than_the_first_is_refused(unsigned: Path):
    sign_once(read_intact(unsigned), unsigned, KEY)
    signed = content_of(unsigned)
    sign_once(read_intact(unsigned), unsigned, KEY)
    with pytest.raises(EvidenceError, match=r"signed already, by the key with SHA-256 [0-9a-f]{64}, which is not"):
        sign_once(read_intact(unsigned), unsigned, Ed25519PrivateKey.generate())
    assert content_of(unsigned) == signed


def full_disk(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("fail", "error"), [(full_disk, StorageError), (interrupt, KeyboardInterrupt)])
def test_evidence_stays_if_the_signed_one_cannot_be_written(
    unsigned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: Callable[..., None],
    error: type[BaseException],
):
    before = content_of(unsigned)
    monkeypatch.setattr(evidence_files, "print_to_pdf", fail)
    with pytest.raises(error):
        sign_evidence(read_intact(unsigned), unsigned, KEY)
    assert content_of(unsigned) == before
    assert names_in(tmp_path) == ["evidence"]


@pytest.mark.parametrize("fail", [full_disk, interrupt])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupted_swap_leaves_whole_evidence(
    unsigned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[..., None], moment: str
):
    """Every rename of the swap fails in turn, before or after it took place."""
    pristine = tmp_path / "pristine"
    shutil.copytree(unsigned, pristine)
    rename = Path.rename
    for count in range(1, 10):
        moved: list[Path] = []

        def fail_at(source: Path, target: Path, count: int = count, moved: list[Path] = moved) -> Path:
            if tmp_path not in (source.parent, target.parent):
                return rename(source, target)
            moved.append(source)
            if moment == "before" and len(moved) == count:
                fail()
            found = rename(source, target)
            if moment == "after" and len(moved) == count:
                fail()
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", fail_at)
            try:
                sign_evidence(read_intact(unsigned), unsigned, KEY)
                break
            except (StorageError, KeyboardInterrupt):
                pass
        assert read_intact(unsigned).metrics == record().metrics
        restore_evidence(unsigned)
        assert names_in(tmp_path) == ["evidence", "pristine"]
        shutil.rmtree(unsigned)
        shutil.copytree(pristine, unsigned)
    assert count == 4, "the swap has three renames"
    assert verify_evidence(unsigned).record.metrics == record().metrics


def test_a_killed_swap_is_undone_or_completed_by_the_next_call(unsigned: Path, tmp_path: Path):
    before, kept = content_of(unsigned), tmp_path / ".evidence.unsigned"
    unsigned.rename(kept)
    restore_evidence(unsigned)
    assert content_of(unsigned) == before
    assert names_in(tmp_path) == ["evidence"]

    shutil.copytree(unsigned, tmp_path / "copy")
    sign_evidence(read_intact(unsigned), unsigned, KEY)
    (tmp_path / "copy").rename(kept)
    signed = content_of(unsigned)
    restore_evidence(unsigned)
    assert content_of(unsigned) == signed
    assert names_in(tmp_path) == ["evidence"]
    restore_evidence(unsigned)
    assert content_of(unsigned) == signed


@pytest.mark.parametrize("is_there", [True, False])
def test_files_of_the_user_are_neither_deleted_nor_taken_for_evidence(unsigned: Path, tmp_path: Path, is_there: bool):
    kept = tmp_path / ".evidence.unsigned"
    if is_there:
        kept.mkdir()
        (kept / "mine.txt").write_text("mine")
    else:
        shutil.copytree(unsigned, tmp_path / "mine")
        kept.symlink_to(tmp_path / "mine")
    restore_evidence(unsigned)
    before = content_of(unsigned)
    with pytest.raises(RunError, match=r"\.evidence\.unsigned is in the way .*: move it away"):
        sign_evidence(read_intact(unsigned), unsigned, KEY)
    assert content_of(unsigned) == before
    unsigned.rename(tmp_path / "elsewhere")
    restore_evidence(unsigned)
    assert not unsigned.exists()
    assert kept.is_symlink() is not is_there
    assert names_in(kept)


def test_evidence_of_another_request_is_left_alone(unsigned: Path, tmp_path: Path):
    other = record().model_copy(update={"operator": "somebody else"})
    write_evidence(other, tmp_path / ".evidence.unsigned", None)
    restore_evidence(unsigned)
    assert read_intact(tmp_path / ".evidence.unsigned").operator == "somebody else"
    (unsigned / "report.html").write_text("altered")
    restore_evidence(unsigned)
    assert names_in(tmp_path) == [".evidence.unsigned", "evidence"]
    with pytest.raises(EvidenceError):
        read_intact(unsigned)
