"""The command line on terminals that cannot show every character."""

from __future__ import annotations

import io
import sys
import warnings

import click
import pytest

from ofmu.cli.main import main

TEXT = "outer step 1: ‖∇Φ‖ 0.3, Zoë"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("latin-1", "outer step 1: ???? 0.3, Zoë"),
        ("cp1252", "outer step 1: ???? 0.3, Zoë"),
        ("ascii", "outer step 1: ???? 0.3, Zo?"),
        ("utf-8", TEXT),
    ],
)
def test_a_character_that_the_terminal_lacks_ends_no_command(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    with warnings.catch_warnings():
        assert main(["--version"]) == 0
        print(TEXT)
        print(TEXT, file=sys.stderr)
        if encoding != "ascii":  # click itself writes UTF-8 in place of ASCII
            click.echo(TEXT)
    assert main(["prepare", "data.∇=1"]) == 1
    for stream in streams.values():
        stream.flush()
        content = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert shown in content
        assert "Traceback" not in content
