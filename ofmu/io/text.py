"""What a text may not hold."""

from __future__ import annotations

import re

HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""Half of a character in UTF-16. JSON and YAML may hold one half alone, and UTF-8 may not."""
