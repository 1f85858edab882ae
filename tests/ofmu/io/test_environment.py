from __future__ import annotations

from pathlib import Path

import pytest

from ofmu.io.environment import driver_version

CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:  gcc 12"
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86  Release Build  (dvs-builder@U16)\n"
    "GCC version:  gcc version 11.4.0 (Ubuntu 11.4.0-1ubuntu1~22.04)\n"
)


@pytest.mark.parametrize(("text", "version"), [(CLOSED, "550.54.15"), (OPEN, "570.86"), ("no version here", None)])
def test_the_driver_is_read_from_what_it_says_of_itself(tmp_path: Path, text: str, version: str | None) -> None:
    file = tmp_path / "version"
    file.write_text(text)
    assert driver_version(file) == version


def test_a_machine_without_the_driver_has_no_version(tmp_path: Path) -> None:
    assert driver_version(tmp_path / "version") is None
