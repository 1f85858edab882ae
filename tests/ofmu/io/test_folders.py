from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ofmu.io.folders import holds_something, new_folder


def fill(target: Path) -> None:
    with new_folder(target) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "file").write_text("new")
        (folder / "config.json").write_text("{}")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


FILLED = ["config.json", "part", "part/file"]


@pytest.mark.parametrize("kind", ["new", "parents", "empty", "link", "longest name"])
def test_a_new_folder_holds_the_content_and_nothing_else_is_made(tmp_path: Path, kind: str) -> None:
    target = tmp_path / {"parents": "a/b/c", "longest name": "n" * 255}.get(kind, "target")
    if kind == "empty":
        target.mkdir()
    if kind == "link":
        (tmp_path / "far").mkdir()
        target.symlink_to(tmp_path / "far")
    fill(target)
    assert names(target) == FILLED
    assert target.is_symlink() == (kind == "link")
    assert len(list(tmp_path.iterdir())) == (2 if kind == "link" else 1)
    (tmp_path / "ordinary").mkdir()
    assert target.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "target"
    if exists:
        target.mkdir()

    def interrupted() -> None:
        with new_folder(target) as folder:
            (folder / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == (["target"] if exists else [])


def test_a_move_that_fails_halfway_is_taken_back(tmp_path: Path) -> None:

    def meet_a_file() -> None:
        """The user makes a file of one of the names while the content is written."""
        with new_folder(tmp_path) as folder:
            (folder / "config.json").write_text("{}")
            (folder / "part").mkdir()
            (tmp_path / "part").write_text("mine")

    with pytest.raises(OSError, match="part"):
        meet_a_file()
    assert names(tmp_path) == ["part"]
    assert (tmp_path / "part").read_text() == "mine"


def test_a_new_volume_holds_nothing(tmp_path: Path) -> None:
    assert not holds_something(tmp_path)
    (tmp_path / "lost+found").mkdir()
    assert not holds_something(tmp_path)
    (tmp_path / ".hidden").touch()
    assert holds_something(tmp_path)


MOUNTED = """
mount -t tmpfs none "$1" || exit 77
"$0" -c '
import os, sys
from pathlib import Path
from ofmu.io.folders import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("new")
print(os.path.ismount(sys.argv[1]), os.listdir(sys.argv[1]))' "$1"
"""


def test_a_mounted_volume_is_filled(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNTED, sys.executable, str(volume)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("a volume of its own cannot be mounted here: unshare --user --mount is not permitted")
    assert done.stdout.strip() == "True ['file']", done.stderr
