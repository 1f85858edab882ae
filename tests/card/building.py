"""Compile the stand-in card, and give processes the environment in which they see it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = sorted(HERE.glob("*.cpp"))


def compiler() -> str | None:
    """Return the C++ compiler of this machine, if there is one."""
    return shutil.which(os.environ.get("CXX", "c++"))


def library() -> Path:
    """Return the compiled library. It is kept in the environment of this Python, one for each state of the sources.

    Raises:
        RuntimeError: there is no compiler, or it fails.
    """
    import torch

    content = b"".join(path.read_bytes() for path in (*SOURCES, HERE / "card.h")) + torch.__version__.encode()
    made = Path(sys.prefix) / "stand-in-card" / hashlib.sha256(content).hexdigest()[:16] / "card.so"
    if made.is_file():
        return made
    command = compiler()
    if command is None:
        raise RuntimeError("there is no C++ compiler: install g++")
    made.parent.mkdir(parents=True, exist_ok=True)
    root = Path(torch.__file__).parent
    headers = [root / "include", root / "include/torch/csrc/api/include", Path(sysconfig.get_paths()["include"])]
    words = [command, "-std=c++20", "-O1", "-fPIC", "-shared", "-DTORCH_API_INCLUDE_EXTENSION_H"]
    words += [word for folder in headers for word in ("-isystem", str(folder))]
    words += [*map(str, SOURCES), f"-L{root / 'lib'}", *(f"-l{name}" for name in ("c10", "torch_cpu", "torch_python"))]
    unfinished = made.with_suffix(f".{os.getpid()}")
    done = subprocess.run([*words, "-o", str(unfinished)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the stand-in card does not compile:\n{done.stderr[:4000]}")
    unfinished.replace(made)
    return made


def environment(cards: int = 1, total_bytes: int = 16 * 2**30) -> Mapping[str, str]:
    """Return the variables of a process that sees the cards.

    Args:
        cards: how many.
        total_bytes: the memory of each.
    """
    path = [str(HERE / "injected"), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "STAND_IN_CARD_LIBRARY": str(library()),
        "STAND_IN_CARDS": str(cards),
        "STAND_IN_CARD_BYTES": str(total_bytes),
    }
