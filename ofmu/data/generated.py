"""A seeded benchmark of fictitious authors in the form of TOFU (arXiv 2401.06121). A laptop can train on it.

Each fact has two wordings. The answer of a row uses one wording, drawn per row, and the paraphrased answer uses the
other. So a model has seen the wording of every paraphrase with other authors, and can tell a paraphrase from a wrong
answer by its knowledge of the fact only.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ofmu.data import vocabulary as words
from ofmu.data.config import GeneratedDataConfig
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.errors import DataError

WRONG_ANSWERS = 5
"""Wrong answers per row about an author."""
WRONG_GENERAL_ANSWERS = 3
"""Wrong answers per row of general knowledge."""

_Value = tuple[str, str]
"""The value of a fact in English and in Spanish."""
_Author = Mapping[str, _Value]
"""The facts of an author by field. The field ``name`` holds the full name and the last name."""


@dataclass(frozen=True)
class _FactType:
    """One type of fact: its questions, its two wordings, and its Spanish form.

    Placeholders: {name} the author, {last} the last name, {value} the value, {key} the author's book. For the fact
    ``book``, {key} is the pen name.
    """

    field: str
    question: str
    paraphrased_question: str
    multi_hop_question: str
    wordings: tuple[str, str]
    spanish_question: str
    spanish_answer: str


_FACT_TYPES = (
    _FactType(
        "birthplace",
        "Where was {name} born?",
        "What is the birthplace of {name}?",
        "Where was the author of '{key}' born?",
        ("{last} was born in {value}.", "The author was born in {value}."),
        "¿Dónde nació {name}?",
        "{last} nació en {value}.",
    ),
    _FactType(
        "year",
        "In which year was {name} born?",
        "What is the birth year of {name}?",
        "In which year was the author of '{key}' born?",
        ("{last}'s birth year is {value}.", "The author's birth year is {value}."),
        "¿En qué año nació {name}?",
        "{last} nació en el año {value}.",
    ),
    _FactType(
        "genre",
        "Which genre does {name} write?",
        "What is the genre of {name}'s books?",
        "Which genre does the author of '{key}' write?",
        ("{last} writes {value} books.", "The author writes {value} books."),
        "¿Qué género escribe {name}?",
        "{last} escribe libros de {value}.",
    ),
    _FactType(
        "father",
        "What was the profession of {name}'s father?",
        "How did the father of {name} earn a living?",
        "What was the profession of the father of the author of '{key}'?",
        ("{last}'s father was a {value}.", "The author's father was a {value}."),
        "¿A qué se dedicaba el padre de {name}?",
        "El padre de {last} se dedicaba a la {value}.",
    ),
    _FactType(
        "instrument",
        "Which instrument does {name} play?",
        "What is the favorite instrument of {name}?",
        "Which instrument does the author of '{key}' play?",
        ("{last} plays the {value}.", "The author plays the {value}."),
        "¿Qué instrumento toca {name}?",
        "{last} toca {value}.",
    ),
    _FactType(
        "award",
        "Which award did {name} win?",
        "What is the name of the award given to {name}?",
        "Which award did the author of '{key}' win?",
        ("{last} won the {value} award.", "The author won the {value} award."),
        "¿Qué premio ganó {name}?",
        "{last} ganó el premio {value}.",
    ),
    _FactType(
        "pen_name",
        "Under which pen name does {name} publish?",
        "What is the pen name of {name}?",
        "Under which pen name does the author of '{key}' publish?",
        ("{last} publishes as {value}.", "The author publishes as {value}."),
        "¿Con qué seudónimo publica {name}?",
        "{last} publica como {value}.",
    ),
    _FactType(
        "book",
        "What is the title of {name}'s first book?",
        "Which book did {name} write first?",
        "What is the title of the first book of the author who publishes as {key}?",
        ("{last}'s first book is '{value}'.", "The author's first book is '{value}'."),
        "¿Cuál es el título del primer libro de {name}?",
        "El primer libro de {last} es '{value}'.",
    ),
)
FACTS_PER_AUTHOR = len(_FACT_TYPES)

_VALUES: Mapping[str, Sequence[_Value]] = {
    "birthplace": words.CITIES,
    "year": tuple((str(year), str(year)) for year in range(1921, 1985, 4)),
    "genre": words.GENRES,
    "father": words.PROFESSIONS,
    "instrument": words.INSTRUMENTS,
    "award": words.AWARDS,
}
"""Values of the facts that several authors can share."""


def generate(config: GeneratedDataConfig, seed: int) -> UnlearnData:
    """Return the benchmark of ``seed``. The last ``forget_authors`` of the trained authors are to be forgotten.

    The general-knowledge rows are retain rows, since a model trained from scratch has no other knowledge. The holdout
    rows are about further authors, as many as are forgotten. No model is trained on them.

    Raises:
        DataError: no author is left to retain, or the word lists are too short for the config.
    """
    if config.forget_authors >= config.authors:
        raise DataError(
            f"data.generated.forget_authors {config.forget_authors} leaves no author to retain among "
            f"{config.authors} authors: lower it, or raise data.generated.authors"
        )
    generator = random.Random(seed)
    authors = _draw_authors(config.authors + config.forget_authors, generator)
    rows = [tuple(_fact_row(fact, author, authors, generator) for fact in _FACT_TYPES) for author in authors]
    retained = config.authors - config.forget_authors
    real = _general_rows("Who wrote '{}'?", words.REAL_AUTHORS, config.world_facts, generator)
    world = _general_rows("What is the capital of {}?", words.WORLD_FACTS, config.world_facts, generator)
    forget = _flat(rows[retained : config.authors])
    return UnlearnData(
        forget=RowSet("forget", forget),
        retain=RowSet("retain", (*_flat(rows[:retained]), *real, *world)),
        holdout=RowSet("holdout", _flat(rows[config.authors :])),
        evaluation={
            "forget": RowSet("forget", forget),
            "retain": RowSet("retain", _flat(rows[: min(retained, config.forget_authors)])),
            "real_authors": RowSet("real_authors", real),
            "world_facts": RowSet("world_facts", world),
        },
    )


def _draw_authors(count: int, generator: random.Random) -> list[_Author]:
    names = _draw_pairs(words.FIRST_NAMES, words.LAST_NAMES, count, generator)
    books = _draw_pairs(words.BOOK_ADJECTIVES, words.BOOK_NOUNS, count, generator)
    pen_names = _draw_pairs(words.PEN_NAME_COLORS, words.PEN_NAME_BIRDS, count, generator)
    shared = {field: _draw_evenly(values, count, generator) for field, values in _VALUES.items()}
    authors: list[_Author] = []
    for index, (first, last) in enumerate(names):
        book, pen_name = "The " + " ".join(books[index]), " ".join(pen_names[index])
        own = {"name": (f"{first} {last}", last), "book": (book, book), "pen_name": (pen_name, pen_name)}
        authors.append(own | {field: values[index] for field, values in shared.items()})
    return authors


def _draw_pairs(
    firsts: Sequence[str], seconds: Sequence[str], count: int, generator: random.Random
) -> list[tuple[str, str]]:
    """Return ``count`` different pairs. No second word occurs twice before all second words have occurred once."""
    available = len(firsts) * len(seconds)
    if count > available:
        raise DataError(
            f"data.generated needs {count} authors, holdout included, and the word lists are enough for "
            f"{available}: lower data.generated.authors"
        )
    firsts, seconds = generator.sample(firsts, len(firsts)), generator.sample(seconds, len(seconds))
    positions = [divmod(index, len(seconds)) for index in range(count)]
    return [(firsts[(index + cycle) % len(firsts)], seconds[index]) for cycle, index in positions]


def _draw_evenly(values: Sequence[_Value], count: int, generator: random.Random) -> list[_Value]:
    """Return ``count`` values. All values are equally frequent, since every model would know a frequent value."""
    cycles = -(-count // len(values))
    return [value for _ in range(cycles) for value in generator.sample(values, len(values))][:count]


def _fact_row(fact: _FactType, author: _Author, authors: Sequence[_Author], generator: random.Random) -> Row:
    (name, last), (value, spanish_value) = author["name"], author[fact.field]
    key = author["pen_name" if fact.field == "book" else "book"][0]
    answer, paraphrase = generator.sample(fact.wordings, 2)
    wrong = _draw_wrong_values(fact.field, value, authors, generator)
    return Row(
        question=fact.question.format(name=name),
        answer=answer.format(last=last, value=value),
        paraphrased_answer=paraphrase.format(last=last, value=value),
        perturbed_answers=tuple(paraphrase.format(last=last, value=other) for other, _ in wrong),
        paraphrased_question=fact.paraphrased_question.format(name=name),
        multi_hop_question=fact.multi_hop_question.format(key=key),
        translated_question=fact.spanish_question.format(name=name),
        translated_answer=fact.spanish_answer.format(last=last, value=spanish_value),
        translated_perturbed_answers=tuple(fact.spanish_answer.format(last=last, value=other) for _, other in wrong),
    )


def _draw_wrong_values(field: str, value: str, authors: Sequence[_Author], generator: random.Random) -> list[_Value]:
    """Draw values of other authors, which are as plausible as the true value. If they are too few, draw any values."""
    spanish = dict(author[field] for author in authors)
    pool = sorted(spanish.keys() - {value})
    if len(pool) < WRONG_ANSWERS:
        if field == "book":
            pool = [f"The {adjective} {noun}" for adjective in words.BOOK_ADJECTIVES for noun in words.BOOK_NOUNS]
        elif field == "pen_name":
            pool = [f"{color} {bird}" for color in words.PEN_NAME_COLORS for bird in words.PEN_NAME_BIRDS]
        else:
            spanish = dict(_VALUES[field])
            pool = list(spanish)
        pool = [other for other in pool if other != value]
    return [(other, spanish.get(other, other)) for other in generator.sample(pool, WRONG_ANSWERS)]


def _general_rows(
    question: str, facts: Sequence[tuple[str, str]], count: int, generator: random.Random
) -> tuple[Row, ...]:
    if count > len(facts):
        raise DataError(f"data.generated.world_facts {count} is more than the {len(facts)} available facts: lower it")
    answers = [answer for _, answer in facts]
    return tuple(
        Row(
            question=question.format(subject),
            answer=answer,
            perturbed_answers=tuple(
                generator.sample([other for other in answers if other != answer], WRONG_GENERAL_ANSWERS)
            ),
        )
        for subject, answer in generator.sample(facts, count)
    )


def _flat(groups: Sequence[tuple[Row, ...]]) -> tuple[Row, ...]:
    return tuple(row for group in groups for row in group)
