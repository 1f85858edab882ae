"""Prompts from a tokenizer's chat template, on a fixed date."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date, datetime
from functools import lru_cache
from typing import Any

from ofmu.data import chat_sandbox
from ofmu.errors import ModelError

_PROBES = ("Who?", "In which city, and in which year, did they meet for the first time?")
_MAX_CHARACTERS = 1_000_000
_WALL_SECONDS = 120.0

_DIRECTIVES = "aAbBcdDeFgGHIjklmMnpPrRsStTuUVwWxXyYzZ"


def chat_prompt(tokenizer: Any, question: str, today: date) -> str:
    """Return the prompt that the tokenizer's chat template makes of a question.

    Some templates print today's date, and scores would then change every day. A template gets ``today`` in place of it:
    as ``date_string``, and from ``strftime_now`` in any format, at midnight.

    Raises:
        ModelError: there is no default template; or the template does not parse, refuses the question, leaves the
            question out, or takes too much time or memory.
    """
    try:
        # Transformers gives its own strftime_now to a template. A macro of that name hides it.
        template = _strftime_macro(today) + tokenizer.get_chat_template()
    except Exception as error:
        raise _unusable(" ".join(str(error).split())[:160] or type(error).__name__) from error
    variables = {
        "add_generation_prompt": True,
        "date_string": f"{today:%d} {_MONTHS[today.month - 1]} {today:%Y}",
    }
    special_tokens = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    problem = _problem_in_sandbox(template, json.dumps(special_tokens | variables, sort_keys=True))
    if problem is not None:
        raise _unusable(problem)
    try:
        return str(
            tokenizer.apply_chat_template(_conversation(question), chat_template=template, tokenize=False, **variables)
        )
    except Exception as error:
        # A template is a program of the model's author and may raise anything, such as for a missing system message.
        raise _unusable(" ".join(str(error).split())[:160] or type(error).__name__) from error


def _conversation(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def _unusable(reason: str) -> ModelError:
    return ModelError(
        f"The chat template of the model cannot make a prompt of a question alone ({reason}): set "
        "data.use_chat_template=false, which uses data.prompt_template"
    )


@lru_cache(maxsize=64)
def _problem_in_sandbox(template: str, variables: str) -> str | None:
    """Render a template for two questions in a process with little time and memory. Return what is wrong with it.

    Args:
        template: the template.
        variables: what the template is given, as JSON.
    """
    if len(template) > _MAX_CHARACTERS:
        return f"it has {len(template):,} characters, and at most {_MAX_CHARACTERS:,} are read"
    request = {
        "path": [place for place in sys.path if place],
        "template": template,
        "variables": {"tools": None, "documents": None} | json.loads(variables),
        "conversations": [_conversation(question) for question in _PROBES],
    }
    try:
        done = subprocess.run(
            [sys.executable, "-I", chat_sandbox.__file__],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_WALL_SECONDS,
            check=False,
        )
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        answer = {"limit": True}  # killed, as it took too much
    if "limit" in answer:
        memory = chat_sandbox.MEMORY_BYTES / 2**30
        return f"it takes more than {chat_sandbox.CPU_SECONDS} seconds or {memory:g} GiB of memory"
    if "error" in answer:
        return str(answer["error"])
    first, second = answer["texts"]
    return "it leaves the question out" if first == second else None


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
"""Names of months in English, whatever the locale."""


def _strftime_macro(today: date) -> str:
    """Return the Jinja source of ``strftime_now``. Its last line break is not printed, as Jinja trims it."""
    midnight = datetime(today.year, today.month, today.day)
    # The percent sign that %% prints must not start a directive.
    filters = "|replace('%%', '\\x00')"
    for letter in _DIRECTIVES:
        for directive in (f"%-{letter}", f"%{letter}"):
            filters += f"|replace({directive!r}, {midnight.strftime(directive)!r})"
    return "{% macro strftime_now(format) %}{{ format" + filters + "|replace('\\x00', '%') }}{% endmacro %}\n"
