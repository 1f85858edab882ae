"""Wrong arguments are answered with what to write instead."""

from __future__ import annotations

import pytest

from ofmu.cli.main import main


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("forget m --min-utility 95 --output x", "0<=x<=1: give a number from 0 to 1"),
        ("forget m --trials 2 --output x", "x>=3: give a whole number of at least 3"),
        ("plan --memory 80GB", "'80GB' is no number: give a number above 0"),
        ("plan --memory -3", "x>0: give a number above 0"),
        ("report x --port many", "give a whole number from 0 to 65535"),
        ("unlearn quickstart", "The option --output is missing: add --output DIR (the run's directory)"),
        ("forget --output x", "MODEL is missing: see ofmu forget --help"),
        ("unlearn quickstart --outptu x", "There is no option --outptu: did you mean --output?"),
        ("evaluate --zzz", "There is no option --zzz: see ofmu evaluate --help"),
        ("unlearn quickstart --output", "requires an argument: write it after --output"),
        ("runs a b", "unexpected extra argument (b): see ofmu runs --help"),
        ("unlearn --output s3://bucket", "this must be a folder: only a search's --run-dir may be a URI"),
    ],
)
def test_a_wrong_argument_is_answered_with_the_fix(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert last.endswith(sentence)
