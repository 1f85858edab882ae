"""Failed writes: each is one sentence with a fix that helps."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from ofmu.cli import main as command
from ofmu.errors import RunError, StorageError
from ofmu.io.files import storage_errors, write_bytes, write_text
from ofmu.models.scratch import train_tokenizer
from tune import AskTell

METRICS = {"ks_statistic": 0.5, "model_utility": 0.5}


@pytest.fixture(scope="module")
def full() -> Path:
    """A file on a disk that is always full."""
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("this system has no /dev/full")
    return path


def test_a_tokenizer_that_does_not_fit_is_one_sentence(full: Path) -> None:
    """Its library raises Exception itself."""
    tokenizer = train_tokenizer(["Who wrote it? Ann wrote it."] * 4, 280)
    sentence = r"Cannot write /dev/full \(No space left.*: free some space there"
    with pytest.raises(StorageError, match=sentence), storage_errors(full):
        tokenizer.backend_tokenizer.save(str(full))


def test_a_block_in_another_one_names_the_file_once(full: Path) -> None:
    """The words of a library in Rust stand in the first sentence, which must not look like another failed write."""
    with pytest.raises(StorageError) as raised, storage_errors(full.parent), storage_errors(full):
        raise Exception("No space left on device (os error 28)")
    assert str(raised.value) == "Cannot write /dev/full (No space left on device (os error 28)): free some space there"


def test_weights_that_do_not_fit_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Cannot write"), storage_errors(tmp_path):
        save_file({}, tmp_path / "missing" / "weights.safetensors")


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.ENOSPC, "free some space there"),
        (errno.EDQUOT, "free some space there"),
        (errno.EROFS, "this file system is read-only"),
        (errno.ENOENT, "deleted or moved"),
        (errno.EACCES, "choose a directory that can be written"),
    ],
)
def test_each_error_has_its_own_fix(
    number: int, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StorageError, match=fix), storage_errors(Path("here")):
        raise OSError(number, os.strerror(number))
    if number == errno.ENOENT:
        return

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), "/some/file")

    monkeypatch.setattr(command.cli, "main", refuse)
    assert command.main([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: Cannot ")
    assert os.strerror(number) in error
    assert ("free some space" in error) == (number in (errno.ENOSPC, errno.EDQUOT))


def test_errors_that_are_not_the_disks_stay_as_they_are() -> None:
    for error in (ValueError("a"), RunError("b"), Exception("c"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised, storage_errors(Path("here")):
            raise error
        assert raised.value is error


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("mine")
    for name in ("file", f".file.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "theirs")
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "theirs").read_text() == "mine"
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    write_bytes(tmp_path / "sub" / "file", b"\x00")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "file", "sub", "theirs"]


@pytest.mark.slow
def test_a_study_that_is_deleted_is_not_begun_again(tmp_path: Path) -> None:
    with AskTell({"search": {"num_trials": 4}}, run_dir=tmp_path / "run") as search:
        first, second = search.ask(), search.ask()
        assert first is not None
        assert second is not None
        search.tell(first, METRICS)
        (tmp_path / "run" / "study.log").rename(tmp_path / "kept.log")
        with pytest.raises(StorageError, match=r"study\.log was deleted or moved during the search"):
            search.tell(second, METRICS)
    assert not (tmp_path / "run" / "study.log").exists()
    (tmp_path / "kept.log").rename(tmp_path / "run" / "study.log")
    with AskTell.resume(tmp_path / "run") as search:
        assert search.result().trials["state"].tolist() == ["complete", "complete"]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A finished search on a disk that was made read-only."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    try:
        with AskTell({"search": {"num_trials": 2}}, run_dir=place / "run") as search:
            while (trial := search.ask()) is not None:
                search.tell(trial, METRICS)
            search.result()
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.slow
def test_a_report_shows_the_front_on_a_read_only_disk(read_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["report", str(read_only / "run")]) == 0
    printed = capsys.readouterr()
    assert "2 trials complete" in printed.out
    assert "the report is not written: Cannot write" in printed.err
    assert "read-only" in printed.err
    assert command.main(["search", "--resume", str(read_only / "run"), "search.num_trials=3"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: Cannot write")
    assert error.count("\n") == 1
    assert "free some space" not in error


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_interrupts_unless_the_user_said_otherwise(ignored: bool) -> None:
    program = f"""
import signal, sys
if {ignored}:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
from ofmu.cli.main import entry_point
sys.argv = ["ofmu", "--version"]
try:
    entry_point()
finally:
    print(signal.getsignal(signal.SIGHUP) is signal.default_int_handler, signal.getsignal(signal.SIGHUP))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    assert last.startswith(str(not ignored))
    assert (str(signal.SIG_IGN) in last) == ignored
