"""``python -m ofmu`` is the command ``ofmu``."""

from ofmu.cli.main import entry_point

entry_point()
