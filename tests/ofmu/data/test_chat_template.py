"""Prompts of chat templates: the same on every day, and one sentence where a template cannot be used."""

from __future__ import annotations

import datetime as time
import itertools
import resource
import subprocess
from datetime import date
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from ofmu.data import chat_sandbox, chat_template
from ofmu.data.config import DataConfig
from ofmu.data.encoding import encode_example, encode_prompt
from ofmu.errors import ModelError
from ofmu.models.scratch import train_tokenizer
from ofmu.run_config import UnlearnConfig
from ofmu.tasks.language.preparation import LanguagePreparation

BODY = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}\n<assistant>\n"


def tokenizer_of(template: Any) -> Any:
    tokenizer = train_tokenizer(["Question: Who?\nAnswer: Ann."] * 4, 300)
    tokenizer.chat_template = template
    return tokenizer


def prompt_of(template: Any, **data: Any) -> str:
    tokenizer = tokenizer_of(template)
    text: str = tokenizer.decode(encode_prompt(tokenizer, "Who?", DataConfig(**data)))
    return text


def on_day(monkeypatch: pytest.MonkeyPatch, *day: int) -> None:
    class Clock(time.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Clock:
            return cls(*day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


FORMATS = {
    "{{ strftime_now('%d %b %Y') }}": "26 Jul 2024",
    "{{ strftime_now('%Y-%m-%d') }}": "2024-07-26",
    "{{ strftime_now('%B %-d, %Y, a %A') }}": "July 26, 2024, a Friday",
    "{{ strftime_now('%H:%M:%S on day %j, %y%% %%d') }}": "00:00:00 on day 208, 24% %d",
    "{{ strftime_now(format='%A') }}": "Friday",
    "{%- set today = strftime_now('%d/%m') %}{{ today }}": "26/07",
    "{% macro head() %}{{ strftime_now('%d') }}{% endmacro %}{{ head() }}": "26",
    "{% if strftime_now is defined %}{{ strftime_now('%d') }}{% endif %}": "26",
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string }}": (
        "26 Jul 2024"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("source", list(FORMATS))
def test_a_template_prints_the_fixed_date_in_any_format(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in ((2025, 1, 2), (2031, 12, 30)):
        on_day(monkeypatch, *day)
        chat_template_utils._compile_jinja_template.cache_clear()
        assert prompt_of("[" + source + "]" + BODY) == f"[{FORMATS[source]}]<user>Who?<assistant>"
    assert "2019" in prompt_of("{{ strftime_now('%Y') }}" + BODY, template_date=date(2019, 3, 1))


@pytest.mark.slow
@pytest.mark.parametrize("start", ["", "\n", "  ", "\n  {% if true %}x{% endif %}", "  {%- if true %}x{% endif %}\n\n"])
def test_the_text_around_the_date_stays_as_the_template_has_it(start: str) -> None:
    tokenizer = tokenizer_of(start + BODY)
    messages = [{"role": "user", "content": "Who?"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(encode_prompt(tokenizer, "Who?", DataConfig())) == expected


def test_the_date_is_stored_with_the_run_and_in_the_cache_key(tiny_config: UnlearnConfig) -> None:
    assert tiny_config.model_dump(mode="json")["data"]["template_date"] == "2024-07-26"
    assert UnlearnConfig.read(None, ["data.template_date=2025-01-02"]).data.template_date == date(2025, 1, 2)
    assert LanguagePreparation(tiny_config, None)._encoding()["template_date"] == "2024-07-26"


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('A system message is needed') }}{% endif %}" + BODY,
        {"tool_use": BODY, "rag": BODY},
        "{% for m in messages %}{{ m['content'] }}",
        "{{ messages[1]['content'] + 'x' }}",
        "{{ messages | no_such_filter }}",
        "{{ 1 / 0 }}",
        "<user>",
        "{% for m in messages %}<{{ m['role'] }}>{% endfor %}",
        "{# " + "x" * 1_000_001 + " #}" + BODY,
    ],
    ids=itertools.count(),
)
def test_a_template_that_cannot_be_used_is_one_sentence_with_the_fix(template: Any) -> None:
    tokenizer = tokenizer_of(template)
    with pytest.raises(ModelError, match=r"chat template .*: set data\.use_chat_template=false") as caught:
        encode_example(tokenizer, "Who?", "Ann.", DataConfig())
    assert "\n" not in str(caught.value)
    plain = encode_example(tokenizer, "Who?", "Ann.", DataConfig(use_chat_template=False))
    assert tokenizer.decode(plain.input_ids) == "<s>Question: Who?\nAnswer: Ann.</s>"


@pytest.mark.slow
def test_the_default_of_several_templates_is_used() -> None:
    assert prompt_of({"default": "d" + BODY, "tool_use": "t" + BODY}).startswith("d<user>Who?")


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}"
    "{% endfor %}" + BODY,
    "doubles": "{% set n = namespace(x='xxxxxxxxxx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
    + BODY,
    "multiplies": "{{ 'x' * 10000000000 }}" + BODY,
    "pads": "{{ 'x' | center(10000000000) }}" + BODY,
    "formats": "{{ '%10000000000d' | format(1) }}" + BODY,
    "recurses": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}" + BODY,
    "powers": "{{ 9 ** (9 ** 9) }}" + BODY,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_template_that_loops_or_fills_memory_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(chat_template, "_WALL_SECONDS", 25.0)
    with pytest.raises(ModelError, match=r"chat template .*: set data\.use_chat_template=false"):
        prompt_of(HOSTILE[name])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < used + 200_000


@pytest.mark.slow
def test_a_template_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Any] = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: tried.append(1) or run(*arguments, **options))
    tokenizer = tokenizer_of("once" + BODY)
    for question in ("Who?", "When?", "Where?"):
        encode_prompt(tokenizer, question, DataConfig())
    assert len(tried) == 1


def test_the_sandbox_renders_what_transformers_renders() -> None:
    template = (
        "{%- for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %}{% break %}{% endfor %}"
        "{{ {'a': 'é<'} | tojson }}{{ bos_token }}{% if tools %}t{% endif %}{{ dict(a=1) }}\n  "
        "{%- set n = namespace(x=1) %}{% set n.x = 2 %}{{ n.x }}{% if add_generation_prompt %}!{% endif %}"
    )
    tokenizer = tokenizer_of(template)
    messages = [{"role": "user", "content": " Who? "}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    rendered = chat_sandbox._environment().from_string(template)
    variables = {"tools": None, "documents": None, "add_generation_prompt": True, **tokenizer.special_tokens_map}
    assert rendered.render(messages=messages, **variables) == expected
