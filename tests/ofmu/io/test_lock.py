from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ofmu.cli.main import main
from ofmu.errors import RunError
from ofmu.io.lock import locked

HOLD = """
import sys
from pathlib import Path
from ofmu.io.lock import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_in_one_output_is_refused_while_the_first_one_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(output)]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        assert main(["unlearn", "quickstart", "--output", str(output)]) == 1
        assert f"Another run works in {output}: wait for it, or name another directory" in capsys.readouterr().err
        assert [path.name for path in output.iterdir()] == [".lock"]
    finally:
        first.kill()
        first.wait()
    with locked(output, "busy"):
        pass


def test_a_directory_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Exception, match="Cannot write") as caught, locked(tmp_path / "file" / "run", "busy"):
        pass
    assert not isinstance(caught.value, RunError)


@pytest.mark.parametrize("existing", [".", "a", "a/run"])
def test_a_refused_run_leaves_the_folders_as_they_were(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).mkdir(parents=True, exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError), locked(tmp_path / "a" / "run", "busy", remove_unused=True):
        raise RunError("refused")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("written", ["a/run/config.yaml", "a/other.txt"])
def test_what_was_written_meanwhile_stays(tmp_path: Path, written: str) -> None:
    with locked(tmp_path / "a" / "run", "busy", remove_unused=True):
        (tmp_path / written).write_text("mine")
    assert (tmp_path / written).read_text() == "mine"
