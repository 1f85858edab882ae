"""A seeded benchmark of fictitious authors in TOFU's shape (arXiv 2401.06121), small enough to train on a laptop.

Each fact has two wordings. A row's training answer uses one of them, drawn per row, and its paraphrase the other, so
a model has seen every paraphrase's wording with other authors, and only knowledge tells right from wrong there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ofmu.data import vocabulary as words
from ofmu.data.config import GeneratedDataConfig
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.errors import DataError

WRONG_ANSWERS = 5
WRONG_GENERAL_ANSWERS = 3

_Pair = tuple[str, str]
"""A value in English and in Spanish."""


@dataclass(frozen=True)
class _Kind:
    """One kind of fact: its questions, its two wordings and its Spanish form.

    Placeholders: {name} the author, {last} the last name, {value} the fact, and {key} the author's book, or the pen
    name where the book is the fact.
    """

    field: str
    question: str
    paraphrased_question: str
    multi_hop_question: str
    wordings: _Pair
    spanish_question: str
    spanish_answer: str


_KINDS = (
    _Kind(
        "birthplace",
        "Where was {name} born?",
        "What is the birthplace of {name}?",
        "Where was the author of '{key}' born?",
        ("{last} was born in {value}.", "The author was born in {value}."),
        "¿Dónde nació {name}?",
        "{last} nació en {value}.",
    ),
    _Kind(
        "year",
        "In which year was {name} born?",
        "What is the birth year of {name}?",
        "In which year was the author of '{key}' born?",
        ("{last}'s birth year is {value}.", "The author's birth year is {value}."),
        "¿En qué año nació {name}?",
        "{last} nació en el año {value}.",
    ),
    _Kind(
        "genre",
        "Which genre does {name} write?",
        "What is the genre of {name}'s books?",
        "Which genre does the author of '{key}' write?",
        ("{last} writes {value} books.", "The author writes {value} books."),
        "¿Qué género escribe {name}?",
        "{last} escribe libros de {value}.",
    ),
    _Kind(
        "father",
        "What was the profession of {name}'s father?",
        "How did the father of {name} earn a living?",
        "What was the profession of the father of the author of '{key}'?",
        ("{last}'s father was a {value}.", "The author's father was a {value}."),
        "¿A qué se dedicaba el padre de {name}?",
        "El padre de {last} se dedicaba a la {value}.",
    ),
    _Kind(
        "instrument",
        "Which instrument does {name} play?",
        "What is the favorite instrument of {name}?",
        "Which instrument does the author of '{key}' play?",
        ("{last} plays the {value}.", "The author plays the {value}."),
        "¿Qué instrumento toca {name}?",
        "{last} toca {value}.",
    ),
    _Kind(
        "award",
        "Which award did {name} win?",
        "What is the name of the award given to {name}?",
        "Which award did the author of '{key}' win?",
        ("{last} won the {value} award.", "The author won the {value} award."),
        "¿Qué premio ganó {name}?",
        "{last} ganó el premio {value}.",
    ),
    _Kind(
        "pen_name",
        "Under which pen name does {name} publish?",
        "What is the pen name of {name}?",
        "Under which pen name does the author of '{key}' publish?",
        ("{last} publishes as {value}.", "The author publishes as {value}."),
        "¿Con qué seudónimo publica {name}?",
        "{last} publica como {value}.",
    ),
    _Kind(
        "book",
        "What is the title of {name}'s first book?",
        "Which book did {name} write first?",
        "What is the title of the first book of the author who publishes as {key}?",
        ("{last}'s first book is '{value}'.", "The author's first book is '{value}'."),
        "¿Cuál es el título del primer libro de {name}?",
        "El primer libro de {last} es '{value}'.",
    ),
)
FACTS_PER_AUTHOR = len(_KINDS)


_VALUES: dict[str, Sequence[_Pair]] = {
    "birthplace": words.CITIES,
    "year": tuple((str(year), str(year)) for year in range(1921, 1985, 4)),
    "genre": words.GENRES,
    "father": words.PROFESSIONS,
    "instrument": words.INSTRUMENTS,
    "award": words.AWARDS,
}


def generate(config: GeneratedDataConfig, seed: int) -> UnlearnData:
    """Return the benchmark for ``seed``: the last ``forget_authors`` authors are to be forgotten.

    The general-knowledge rows stand in the retain rows, since a model trained from scratch knows nothing else; the
    holdout rows tell of as many further authors as are forgotten, on whom no model is trained.

    Raises:
        DataError: nobody is left to retain, or more is asked for than the word lists can tell apart.
    """
    if config.forget_authors >= config.authors:
        raise DataError(
            f"data.generated.forget_authors {config.forget_authors} leaves nobody to retain among "
            f"{config.authors} authors: lower it, or raise data.generated.authors"
        )
    draw = random.Random(seed)
    people = _authors(config.authors + config.forget_authors, draw)
    rows = [tuple(_fact_row(kind, person, people, draw) for kind in _KINDS) for person in people]
    retained = config.authors - config.forget_authors
    real = _general_rows("Who wrote '{}'?", words.REAL_AUTHORS, config.world_facts, draw)
    world = _general_rows("What is the capital of {}?", words.WORLD_FACTS, config.world_facts, draw)
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


def _authors(count: int, draw: random.Random) -> list[dict[str, _Pair]]:
    names = _pairings(words.FIRST_NAMES, words.LAST_NAMES, count, draw)
    books = _pairings(words.BOOK_ADJECTIVES, words.BOOK_NOUNS, count, draw)
    pen_names = _pairings(words.PEN_NAME_COLORS, words.PEN_NAME_BIRDS, count, draw)
    dealt = {field: _deal(values, count, draw) for field, values in _VALUES.items()}
    people = []
    for index, (first, last) in enumerate(names):
        book, pen_name = "The " + " ".join(books[index]), " ".join(pen_names[index])
        person = {"name": (f"{first} {last}", last), "book": (book, book), "pen_name": (pen_name, pen_name)}
        people.append(person | {field: values[index] for field, values in dealt.items()})
    return people


def _pairings(firsts: Sequence[str], seconds: Sequence[str], count: int, draw: random.Random) -> list[tuple[str, str]]:
    """Return ``count`` different pairs in which a second word comes back only once all were used."""
    room = len(firsts) * len(seconds)
    if count > room:
        raise DataError(
            f"data.generated asks for {count} authors, holdout included, and {room} is the most that can be told "
            "apart: lower data.generated.authors"
        )
    firsts, seconds = draw.sample(firsts, len(firsts)), draw.sample(seconds, len(seconds))
    laps = [divmod(index, len(seconds)) for index in range(count)]
    return [(firsts[(place + lap) % len(firsts)], seconds[place]) for lap, place in laps]


def _deal(values: Sequence[_Pair], count: int, draw: random.Random) -> list[_Pair]:
    """Return ``count`` values, each as often as the others: a frequent one would look known to every model."""
    laps = -(-count // len(values))
    return [value for _ in range(laps) for value in draw.sample(values, len(values))][:count]


def _fact_row(kind: _Kind, person: dict[str, _Pair], people: Sequence[dict[str, _Pair]], draw: random.Random) -> Row:
    (name, last), (value, spanish_value) = person["name"], person[kind.field]
    key = person["pen_name" if kind.field == "book" else "book"][0]
    answer, paraphrase = draw.sample(kind.wordings, 2)
    wrong = _wrong_values(kind.field, value, people, draw)
    return Row(
        question=kind.question.format(name=name),
        answer=answer.format(last=last, value=value),
        paraphrased_answer=paraphrase.format(last=last, value=value),
        perturbed_answers=tuple(paraphrase.format(last=last, value=other) for other, _ in wrong),
        paraphrased_question=kind.paraphrased_question.format(name=name),
        multi_hop_question=kind.multi_hop_question.format(key=key),
        translated_question=kind.spanish_question.format(name=name),
        translated_answer=kind.spanish_answer.format(last=last, value=spanish_value),
        translated_perturbed_answers=tuple(kind.spanish_answer.format(last=last, value=other) for _, other in wrong),
    )


def _wrong_values(field: str, value: str, people: Sequence[dict[str, _Pair]], draw: random.Random) -> list[_Pair]:
    """Draw other authors' values, which are as plausible as the right one; any values where they are too few."""
    spanish = dict(person[field] for person in people)
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
    return [(other, spanish.get(other, other)) for other in draw.sample(pool, WRONG_ANSWERS)]


def _general_rows(question: str, facts: Sequence[_Pair], count: int, draw: random.Random) -> tuple[Row, ...]:
    if count > len(facts):
        raise DataError(f"data.generated.world_facts {count} is more than the {len(facts)} facts there are: lower it")
    answers = [answer for _, answer in facts]
    return tuple(
        Row(
            question=question.format(subject),
            answer=answer,
            perturbed_answers=tuple(
                draw.sample([other for other in answers if other != answer], WRONG_GENERAL_ANSWERS)
            ),
        )
        for subject, answer in draw.sample(facts, count)
    )


def _flat(groups: Sequence[tuple[Row, ...]]) -> tuple[Row, ...]:
    return tuple(row for group in groups for row in group)
