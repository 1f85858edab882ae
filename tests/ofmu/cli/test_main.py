"""The command line as a whole: terminals that cannot show every character, and arguments of the wrong kind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import click
import pytest
import torch

from ofmu.cli.main import WarningPrinter, main

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


def test_a_warning_is_printed_once_whatever_resets_the_filters(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = WarningPrinter()
        for text in ("Texts are cut", "Texts are cut", "another", "Texts are cut"):
            warnings.warn(text, stacklevel=1)
        warnings.warn("a library's", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err.splitlines() == ["Warning: Texts are cut", "Warning: another"]


_FINDER = """
import importlib.machinery, runpy, sys

class Finder:  # as an editable install of setuptools adds it, after the current directory
    def find_spec(name, path=None, target=None):
        if name == "ofmu.__main__":
            return importlib.machinery.PathFinder.find_spec(name, [{package!r}])

sys.path = ["", *(path for path in sys.path if path not in ("", {repository!r}))]
sys.meta_path = [each for each in sys.meta_path if "editable" not in repr(each)] + [Finder]
runpy.run_module("ofmu", run_name="__main__", alter_sys=True)
"""


def test_a_folder_that_hides_the_package_is_named(tmp_path: Path) -> None:
    """A clone named ofmu, seen from its parent, is a namespace package for Python."""
    import ofmu

    (tmp_path / "ofmu" / "docs").mkdir(parents=True)
    package = Path(ofmu.__file__).parent
    script = _FINDER.format(package=str(package), repository=str(package.parent))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: The folder {tmp_path / 'ofmu'} hides the package ofmu from Python: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [["plan", "{long}"], ["report", "{long}"], ["runs", "{long}"], ["unlearn", "--output", "{long}"]]
)
def test_a_text_that_cannot_be_a_path_is_one_sentence(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = str(tmp_path / ("a" * 300))
    assert main([word.format(long=long) for word in command]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ")
    assert "File name too long" in error
    assert error.count("\n") == 1


def test_memory_that_ran_out_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")

    monkeypatch.setattr("ofmu.trainer.unlearn", fail)
    assert main(["unlearn", "quickstart", "--output", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: The GPU ran out of memory (no room for 2.00 GiB): lower engine.micro_batch_size")
    assert error.count("\n") == 1


def test_a_misspelt_command_is_named_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serach"]) == 2
    assert "There is no command 'serach': did you mean 'search'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["runs", "report"])
def test_a_file_in_place_of_a_directory_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "forget.jsonl").write_text("{}")
    assert main([command, str(tmp_path / "forget.jsonl")]) == 1
    assert f"{tmp_path / 'forget.jsonl'} is a file: name the" in capsys.readouterr().err
