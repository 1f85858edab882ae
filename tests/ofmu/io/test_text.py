"""Counts as words, and paths as words of a shell."""

from __future__ import annotations

import subprocess

import pytest

from ofmu.io.text import counted, shell_word


def test_one_thing_is_singular() -> None:
    assert [counted(number, "other seed") for number in (0, 1, 2)] == ["0 other seeds", "1 other seed", "2 other seeds"]


@pytest.mark.parametrize("path", ["runs/one", "my runs/it's", "s3://bucket/run?a=b&c=d", "run;$HOME", "-x*"])
def test_a_shell_reads_a_path_as_one_word(path: str) -> None:
    assert subprocess.check_output(["sh", "-c", f"printf %s {shell_word(path)}"], text=True) == path
    assert shell_word("runs/one") == "runs/one"
