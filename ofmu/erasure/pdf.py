"""Print an HTML file to PDF with a Chromium of this machine. Nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from ofmu.errors import StorageError

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SECONDS = 120


def browser() -> str | None:
    """Return the path of a Chromium; None if there is none."""
    return next((found for name in _BROWSERS if (found := shutil.which(name))), None)


def print_to_pdf(page: Path, target: Path) -> bool:
    """Print a page to a new file. Return False if this machine has no browser.

    Raises:
        StorageError: the browser made no file.
    """
    program = browser()
    if program is None:
        return False
    # The page is our own, and Chromium refuses its sandbox to the superuser, as in a container.
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="ofmu-print-", ignore_cleanup_errors=True) as profile:
        command = [
            program,
            "--headless=new",
            *sandbox,
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            f"--user-data-dir={profile}",
            "--no-pdf-header-footer",
            f"--print-to-pdf={target}",
            page.absolute().as_uri(),
        ]
        try:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                timeout=_SECONDS, check=False,
            )  # fmt: skip
        except (subprocess.TimeoutExpired, OSError) as error:
            raise StorageError(f"{program} could not print {page} ({error}): run the command again") from error
    if not target.is_file():
        raise StorageError(f"{program} made no {target.name} of {page}: check the browser, or remove it from the path")
    return True
