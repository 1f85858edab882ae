"""Prompts from a tokenizer's chat template, on a fixed date."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from ofmu.errors import ModelError

_DIRECTIVES = "aAbBcdDeFgGHIjklmMnpPrRsStTuUVwWxXyYzZ"


def chat_prompt(tokenizer: Any, question: str, today: date) -> str:
    """Return the prompt that the tokenizer's chat template makes of a question.

    Some templates print today's date, and scores would then change every day. A template gets ``today`` in place of it:
    as ``date_string``, and from ``strftime_now`` in any format, at midnight.

    Raises:
        ModelError: there is no default template, or the template does not parse or refuses the question.
    """
    try:
        # Transformers gives its own strftime_now to a template. A macro of that name hides it.
        template = _strftime_macro(today) + tokenizer.get_chat_template()
        return str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
                date_string=f"{today:%d} {_MONTHS[today.month - 1]} {today:%Y}",
            )
        )
    except Exception as error:
        # A template is a program of the model's author and may raise anything, such as for a missing system message.
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelError(
            f"The chat template of the model cannot make a prompt of a question alone ({reason}): set "
            "data.use_chat_template=false, which uses data.prompt_template"
        ) from error


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
