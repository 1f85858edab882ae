"""Fill a new folder in one step, wherever the user wants it: also on a mounted volume, or behind a link."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VOLUME = "lost+found"
"""The folder that a new ext file system holds at its root."""


def holds_something(folder: Path) -> bool:
    """Return whether an existing folder holds anything besides what the file system itself made."""
    return any(entry.name != _VOLUME for entry in folder.iterdir())


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder whose content is at ``target`` after the block.

    If the block raises, or the content cannot be moved, nothing is left behind. A ``target`` that does not exist
    appears in one step. An existing, empty ``target`` stays the folder that it is, since a mount point or a link
    cannot be replaced.

    Raises:
        OSError: the disk refuses.
    """
    existing = target.is_dir()
    place = target if existing else target.parent
    place.mkdir(parents=True, exist_ok=True)
    # A new name, since a folder with any fixed name may be the user's. The name is short, since the target's own name
    # may be as long as the file system allows.
    with tempfile.TemporaryDirectory(prefix=".ofmu.", dir=place) as made:
        content = Path(made) / "content"
        content.mkdir()
        yield content
        if existing:
            _move_entries(content, target)
        else:
            content.rename(target)


def _move_entries(source: Path, target: Path) -> None:
    """Move all entries of a folder, or none."""
    moved: list[Path] = []
    try:
        for entry in sorted(source.iterdir()):
            moved.append(entry.rename(target / entry.name))
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
