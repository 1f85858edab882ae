"""``python -m ofmu.methods`` prints the documentation's table of methods, made from what the methods state."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ofmu.methods import BUILT_IN
from ofmu.methods.registry import method_class

HEAD = """\
# Methods

All are trained, searched and scored by the same code. `L_f` and `L_r` are the losses (token-mean NLL of the answers,
or cross-entropy of the images) on the forget and the retain rows. Where only `L_forget` is given, a step descends
γ·L_forget + α·L_retain, γ being `forget_weight` and α `retain_weight`. *Searched* is the space that `ofmu search`
draws from unless the config names another, *published* what the authors state. A docstring in `ofmu/methods/<name>.py`
says more, also where a definition differs from a known implementation.

This page is the output of `python -m ofmu.methods`.
"""
COLUMNS = ("name", "method", "tasks", "formula", "source", "searched", "published")


def page() -> str:
    """Return the page in Markdown."""
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    return "\n".join([HEAD, *lines, *(_line(_entry(name)) for name in BUILT_IN)])


def _entry(name: str) -> list[str]:
    method = method_class(name)
    return [
        f"`{name}`",
        method.title,
        ", ".join(sorted(method.tasks)),
        first_sentence(inspect.getdoc(method) or ""),
        method.source,
        "<br>".join(f"`{key}` {searched(spec)}" for key, spec in method.space.items()),
        "<br>".join(f"`{key}` {value_text(value)}" for key, value in method.published.items()),
    ]


def first_sentence(text: str) -> str:
    """Return a docstring up to its first full stop (not an abbreviation's), without it and in one line."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<!\bs\.t)(?<!\be\.g)(?<!\bi\.e)(?<!\bal)\.(?:\s|$)", paragraph, maxsplit=1)[0]


def searched(spec: Mapping[str, Any]) -> str:
    """Return a range or a list of choices as text, in the form that ``search.space`` has."""
    if "choices" in spec:
        return ", ".join(value_text(value) for value in spec["choices"])
    scale = " log" if spec.get("log") else ""
    return f"{value_text(spec['low'])} … {value_text(spec['high'])}{scale}"


def value_text(value: Any) -> str:
    """Return a setting's value; numbers without the digits that say nothing."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(page())
