"""The type of options that name a folder on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


class Folder(click.Path):
    """A path that is no URI: taken for a path, ``s3://bucket`` would become a folder ``s3:`` here."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse a URI."""
        if "://" in str(value):
            self.fail("this must be a folder: only a search's --run-dir may be a URI", param, ctx)
        return super().convert(value, param, ctx)
