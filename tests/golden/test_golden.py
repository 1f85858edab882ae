"""The numbers of the commands are the recorded ones, bit for bit, on a machine of the kind that recorded them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_SPEC = importlib.util.spec_from_file_location("golden_record", HERE / "record.py")
assert _SPEC is not None
assert _SPEC.loader is not None
recorder = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(recorder)
GOLDEN = json.loads((HERE / "golden.json").read_text(encoding="utf-8"))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", list(recorder.CASES))
def test_a_command_gives_the_recorded_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = recorder.machine(), GOLDEN["machine"]
    other = {key: f"{there[key]} there, {here[key]} here" for key in there if there[key] != here[key]}
    if other:
        pytest.skip(f"the numbers were recorded on another kind of machine: {other}")
    for variable in ("OFMU_CACHE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(variable, "")  # the recorder sets them, and the end of the test restores them
    assert json.loads(json.dumps(recorder.record([name])))[name] == GOLDEN[name]


def test_the_record_covers_every_case() -> None:
    assert set(GOLDEN) == {"machine", *recorder.CASES}
