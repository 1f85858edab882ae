"""Modules of the user's own that a config names: methods, and functions of the scores."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType

from ofmu.errors import ConfigError


def import_plugin(module: str, key: str) -> ModuleType:
    """Import a module that the config names under ``key``, from the working directory where it lies nowhere else.

    An installed command, unlike ``python -m``, does not look there by itself.

    Raises:
        ConfigError: it cannot be imported, or fails while it is.
    """
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(f"{key} '{module}' cannot be imported ({error}): run where it lies, or install it") from error
    except Exception as error:
        # whatever a user's module does wrong when it is loaded: theirs to mend, and no traceback of ours
        raise ConfigError(
            f"{key} '{module}' fails while it is imported ({type(error).__name__}: {error}): correct it"
        ) from error
