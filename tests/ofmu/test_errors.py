"""Our own warnings are shown as sentences, in the user's scripts as on the command line."""

from __future__ import annotations

import ast
import subprocess
import sys
import warnings
from pathlib import Path

from ofmu.errors import OfmuWarning

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import warnings
from ofmu.errors import OfmuWarning
warnings.warn("the disk is slow", category=OfmuWarning)
warnings.warn("of the user", UserWarning)
"""


def test_a_warning_of_ours_is_one_sentence_without_a_path() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, cwd=ROOT)
    first, *others = done.stderr.splitlines()
    assert first == "Warning: the disk is slow"
    assert others[0] == "<string>:5: UserWarning: of the user"
    assert warnings.formatwarning("text", OfmuWarning, "file.py", 3) == "Warning: text\n"


def test_every_warning_of_ours_has_the_category() -> None:
    found = 0
    for package in ("ofmu", "tune", "cluster"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if "warnings.warn(" not in text:
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
                    found += 1
                    categories = [ast.unparse(word.value) for word in node.keywords if word.arg == "category"]
                    assert categories == ["OfmuWarning"], f"{path}:{node.lineno}"
    assert found > 10
