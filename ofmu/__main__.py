"""``python -m ofmu`` is the command ``ofmu``."""

import sys

import ofmu

if not hasattr(ofmu, "__version__"):
    # Python took a folder without __init__.py for the package, such as a clone that is named ofmu.
    sys.exit(
        f"Error: The folder {next(iter(ofmu.__path__))} hides the package ofmu from Python: run the command in another "
        "directory, such as inside that folder"
    )

from ofmu.cli.main import entry_point

entry_point()
