"""``python -m ofmu`` is the command ``ofmu``."""

from ofmu.cli import entry_point

entry_point()
