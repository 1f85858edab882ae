"""``python -m ofmu.methods`` prints the page ``docs/methods.md`` from the classes of the methods."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ofmu.methods import BUILT_IN
from ofmu.methods.registry import method_class

HEAD = """\
# Methods

The same code trains, searches and scores all methods. `L_f` and `L_r` are the losses on the forget rows and on the
retain rows: the token-mean NLL of the answers for text, the cross-entropy for images. Where the formula gives only
`L_forget`, a step descends γ·L_forget + α·L_retain with γ = `forget_weight` and α = `retain_weight`. The *target* is
the model before unlearning, and `θ_0` are its parameters.

*Search space* is the space that `ofmu search` draws from if the config names no other space. *Published* are the
values that the authors state. The docstring in `ofmu/methods/<name>.py` says more, for example where a definition
differs from a known implementation.

Options of every method whose forget term has a weight, OFMU's ascent among them: `min_forget_loss` ends the forgetting
once the mean loss of the forget rows has reached a level, by an augmented Lagrangian or by a switch (`forget_stop`,
derived in `ofmu/methods/forget_stop.py`). A step beyond the level computes no forget gradient. Options of all methods
with one loop: `conflict` and `separate_moments`. Options of every method: `saliency_fraction` and `retain_share`.

This page is the output of `python -m ofmu.methods`.
"""
COLUMNS = ("name", "method", "tasks", "formula", "source", "search space", "published")


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
        "<br>".join(f"`{key}` {space_text(spec)}" for key, spec in method.space.items()),
        "<br>".join(f"`{key}` {value_text(value)}" for key, value in method.published.items()),
    ]


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring in one line, without its full stop.

    The full stops of the abbreviations s.t., e.g., i.e. and al. do not end a sentence.
    """
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<!\bs\.t)(?<!\be\.g)(?<!\bi\.e)(?<!\bal)\.(?:\s|$)", paragraph, maxsplit=1)[0]


def space_text(spec: Mapping[str, Any]) -> str:
    """Return an entry of ``search.space`` as text: a range, or a list of choices, and its conditions."""
    if "choices" in spec:
        text = ", ".join(value_text(value) for value in spec["choices"])
    else:
        text = f"{value_text(spec['low'])} … {value_text(spec['high'])}{' log' if spec.get('log') else ''}"
    for key, allowed in spec.get("when", {}).items():
        values = allowed if isinstance(allowed, list) else [allowed]
        text += f", where {key.removeprefix('method.')} is {' or '.join(map(value_text, values))}"
    return f"{text}, else {value_text(spec['otherwise'])}" if "otherwise" in spec else text


def value_text(value: Any) -> str:
    """Return the value of a setting as text. Numbers have no trailing zeros."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(page())
