"""Counts as words, and paths as words of a shell."""

from __future__ import annotations

import subprocess

import pytest

from ofmu.io.text import counted, listed, shell_word


def test_one_thing_is_singular() -> None:
    assert [counted(number, "other seed") for number in (0, 1, 2)] == ["0 other seeds", "1 other seed", "2 other seeds"]


def test_a_list_in_a_sentence_names_the_first_words_and_counts_the_rest() -> None:
    assert [listed(["a", "b", "c"][:count]) for count in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    assert listed(["a", "b", "c", "d"], most=2) == "a, b and 2 more"


@pytest.mark.parametrize("path", ["runs/one", "my runs/it's", "s3://bucket/run?a=b&c=d", "run;$HOME", "-x*"])
def test_a_shell_reads_a_path_as_one_word(path: str) -> None:
    assert subprocess.check_output(["sh", "-c", f"printf %s {shell_word(path)}"], text=True) == path
    assert shell_word("runs/one") == "runs/one"
