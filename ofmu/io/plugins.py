"""Import the user's own modules that a config names: methods and custom metrics."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType

from ofmu.errors import ConfigError


def import_plugin(module: str, key: str) -> ModuleType:
    """Import a module. Search the working directory last, which an installed command would not search at all.

    Args:
        module: the module's dotted name.
        key: the config key that names the module, for errors.

    Raises:
        ConfigError: the module cannot be found, or raises an error during the import.
    """
    working_directory = os.getcwd()
    if working_directory not in sys.path and "" not in sys.path:
        sys.path.append(working_directory)
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{key} '{module}' cannot be imported ({error}): run the command in the module's directory, or install it"
        ) from error
    except Exception as error:
        # A user's module may raise anything. The user must fix the module, so our traceback would not help.
        raise ConfigError(
            f"{key} '{module}' fails while it is imported ({type(error).__name__}: {error}): correct the module"
        ) from error
