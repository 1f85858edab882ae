"""Show torch the card as soon as torch is imported. Python imports this module first if its folder is on PYTHONPATH.

So ranks, Ray's workers and all other processes that inherit the environment have the card too.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _Finder(importlib.abc.MetaPathFinder):
    """Loads the card's library before torch asks for a card, and changes ``torch.cuda`` after torch is loaded."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec is None or spec.origin is None or spec.loader is None:
            return spec
        libraries = Path(spec.origin).parent / "lib"
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            ctypes.CDLL(str(libraries / "libtorch_python.so"), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(os.environ["STAND_IN_CARD_LIBRARY"], mode=ctypes.RTLD_GLOBAL)
            execute(module)
            import stand_in_card

            stand_in_card.install()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if os.environ.get("STAND_IN_CARD_LIBRARY"):
    sys.meta_path.insert(0, _Finder())
