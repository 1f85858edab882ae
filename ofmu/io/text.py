"""What a text may not hold, how JSON is read from a text, counts as words, and paths as words of a shell."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""Half of a character in UTF-16. JSON and YAML may hold one half alone, and UTF-8 may not."""


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as ``1 seed`` and ``2 seeds``. Only regular plurals are made."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(words: Sequence[str], most: int = 8) -> str:
    """Return words as a list in a sentence, such as ``a, b and c``. Of more than ``most`` words, the rest are counted.

    Args:
        words: at least one word.
        most: the largest number of words that are named.
    """
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def parse_json(text: str, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse JSON.

    Args:
        text: the JSON.
        object_pairs_hook: makes an object of its names and values, as for :func:`json.loads`.

    Raises:
        json.JSONDecodeError: the text is not JSON, is nested too deeply, or holds a number of thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise json.JSONDecodeError("it is nested too deeply", text, 0) from error
    except ValueError as error:
        raise json.JSONDecodeError(f"it holds a number that is too long ({error})", text, 0) from error


def shell_word(path: str | Path) -> str:
    """Return a path or a URI as one word of a command that a user copies into a shell."""
    return shlex.quote(str(path))
