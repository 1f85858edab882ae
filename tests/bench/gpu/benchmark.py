"""Run the parts one after the other, each in a child process with a limit; one JSON file and one table."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofmu.io.console_table import Column, print_table

ROOT = Path(__file__).resolve().parents[3]
FORMAT = "ofmu-gpu/1"
_OUTPUT_LINES = 20


@dataclass(frozen=True)
class Part:
    """A module with a function ``measure(settings)`` that yields rows."""

    name: str
    module: str
    seconds: float
    """After this time the part is ended."""


PARTS = (
    # The limits add up to less than ten minutes.
    Part("parity", "gpu.parity", 110),
    Part("products", "gpu.products", 70),
    Part("full size", "gpu.full_size", 150),
    Part("adapters", "gpu.adapters", 110),
    Part("halves", "gpu.halves", 60),
    Part("warm start", "gpu.warm_start", 80),
)


def run_parts(parts: Sequence[Part], given: Mapping[str, Any], output: Path, *, commit: str | None = None) -> Any:
    """Run every part, whatever becomes of the others. Write ``output`` after each part, and return its content.

    Args:
        parts: the parts in order.
        given: ``device``, ``size`` and ``seed``.
        output: the JSON file.
        commit: the commit of the checkout. None: git is asked.

    Raises:
        FileExistsError: ``output`` is a file that this benchmark did not write.
    """
    check_output(output)
    result: dict[str, Any] = {
        "format": FORMAT,
        "commit": commit or git_commit(),
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "given": dict(given),
        "environment": {},
        "parts": [],
    }
    for part in parts:
        print(f"{part.name}: at most {part.seconds:.0f} s", file=sys.stderr, flush=True)
        found, machine = run_part(part, given)
        result["environment"] = machine or result["environment"]
        result["parts"].append(found)
        result["seconds"] = round(sum(each["seconds"] for each in result["parts"]), 1)
        write(output, result)
    return result


def run_part(part: Part, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run one part in a child. Return what became of it, and the machine as the child saw it."""
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder) / "rows.jsonl", Path(folder) / "log.txt"
        command = [sys.executable, "-m", "gpu.child", part.module, json.dumps(dict(given)), str(rows)]
        # The checkout's own packages, whatever is installed, and the parts.
        paths = [str(ROOT), str(ROOT / "tests" / "bench"), *(path for path in sys.path if path)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        begin = time.monotonic()
        with log.open("wb") as stream:
            # In its own session, so that the processes that a part starts end with it.
            child = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code: int | None = child.wait(part.seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(child)
        found: dict[str, Any] = {"name": part.name, "status": "done", "limit": part.seconds, "rows": []}
        machine = _read(rows, found)
        found["seconds"] = round(time.monotonic() - begin, 1)
        if code is None:
            found |= {"status": "timed out", "reason": f"it took more than {part.seconds:.0f} s"}
        elif code:
            found |= {"status": "failed", "output": log.read_text(errors="replace").splitlines()[-_OUTPUT_LINES:]}
            found.setdefault("reason", f"the process ended with exit status {code}")
        return found, machine


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and what it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _read(rows: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Add what a child wrote to ``found``. Return the machine. A line that was cut off is left out."""
    machine: dict[str, Any] = {}
    for line in rows.read_text(encoding="utf-8").splitlines() if rows.is_file() else ():
        try:
            ((kind, content),) = json.loads(line).items()
        except ValueError:
            continue
        if kind == "row":
            found["rows"].append(content)
        elif kind == "environment":
            machine = content
        elif kind == "settings":
            found["settings"] = content
        else:
            found |= {"status": kind, "reason": content}
    return machine


def check_output(output: Path) -> None:
    """Check that a result may be written.

    Raises:
        FileExistsError: the file is none of this benchmark's.
    """
    try:
        ours = json.loads(output.read_text(encoding="utf-8")).get("format") == FORMAT
    except FileNotFoundError:
        return
    except (ValueError, AttributeError):
        ours = False
    if not ours:
        raise FileExistsError(f"{output} is no result of this benchmark: name another file with --output")


def write(output: Path, result: Any) -> None:
    """Write the JSON file, so that a reader sees the old one or the new one."""
    partial = output.with_name(f".{output.name}.partial")
    partial.write_text(json.dumps(_without_nan(result), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    partial.replace(output)


def _without_nan(value: Any) -> Any:
    """Return JSON values in which a number that is not finite is its name: JSON has no such numbers."""
    if isinstance(value, Mapping):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def git_commit() -> str | None:
    """Return the commit of the checkout, with ``+`` if files were changed. None: this is no checkout."""
    try:
        commit, changed = (
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")


def failed(result: Mapping[str, Any]) -> bool:
    """Return whether a part, or a case of a part, failed or ran out of time."""
    return any(
        part["status"] in ("failed", "timed out") or any("failed" in row for row in part["rows"])
        for part in result["parts"]
    )


def show(result: Mapping[str, Any]) -> None:
    """Print the table."""
    machine = result["environment"]
    card = ", ".join(machine.get("gpus", [])) or "no CUDA card"
    print(f"{card}, torch {machine.get('versions', {}).get('torch', '?')}, commit {result['commit'] or 'unknown'}\n")
    columns = [Column(name) for name in ("part", "case", "figures", "goals", "s")]
    print_table(columns, [line for part in result["parts"] for line in table_lines(part)])


def table_lines(part: Mapping[str, Any]) -> list[list[str]]:
    """Return the lines of a part: one for each case, and one for a part that did not end well."""
    lines = []
    for row in part["rows"]:
        reason = next((f"{key}: {row[key]}" for key in ("skipped", "failed") if key in row), "")
        numbers = ", ".join(f"{name} {_number(value)}" for name, value in row["figures"].items() if value is not None)
        goals = ", ".join(f"{name} {goal['goal']} {_MET[goal['met']]}" for name, goal in row["goals"].items())
        lines.append([part["name"], row["case"], numbers or reason, goals, f"{row['seconds']:.1f}"])
    if part["status"] != "done":
        lines.append([part["name"], "", f"{part['status']}: {part.get('reason', '')}", "", f"{part['seconds']:.1f}"])
    return lines


_MET = {True: "met", False: "MISSED", None: "unknown"}


def _number(value: Any) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )
