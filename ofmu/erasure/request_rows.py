"""Build the forget, retain and holdout rows of a request."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ofmu.chain.rows import EarlierRows
from ofmu.data.files import read_rows
from ofmu.data.load import check_forget_not_retained, check_holdout_not_trained
from ofmu.data.normalized import normalized
from ofmu.data.rows import Row, RowSet
from ofmu.erasure.kept_out import forgotten_rows, kept_out, kind_of_earlier
from ofmu.erasure.person import find_mentions
from ofmu.erasure.request import ErasureRequest
from ofmu.erasure.retain_rows import choose_retain_rows
from ofmu.errors import DataError
from ofmu.io.text import counted
from ofmu.run_config import UnlearnConfig

RetainSource = Literal["given", "corpus", "generated"]


@dataclass(frozen=True, kw_only=True)
class ReviewedRow:
    """A row of the corpus that somebody should look at, since it is or may be about the request."""

    number: int
    """Number of the row in the corpus, from 1."""
    decision: Literal["forget", "left out"]
    """``left out``: the row is neither forgotten nor retained."""
    reason: str
    row: Row


@dataclass(frozen=True, kw_only=True)
class RequestRows:
    """The rows of a request."""

    forget: RowSet
    retain: RowSet
    holdout: RowSet | None
    origins: Mapping[str, str]
    """How each set was made, in words that hold no text of a row."""
    retain_source: RetainSource
    review: tuple[ReviewedRow, ...] = ()
    """By number."""
    notes: tuple[str, ...] = ()
    """What a reader of the evidence should know about the rows. No note holds the text of a row."""


def build_rows(
    request: ErasureRequest, model: str, config: UnlearnConfig, earlier: Sequence[EarlierRows] = ()
) -> RequestRows:
    """Build the rows of a request.

    Args:
        request: the request.
        model: the model that must forget. It answers the questions of the request, and neutral questions if nothing
            else gives retain rows.
        config: gives columns, prompts, device and seed.
        earlier: the earlier requests of the chain, and what was forgotten before them. Their rows do not come back as
            retain rows.

    Raises:
        DataError: a file is missing or malformed, no row or every row is about the person, or sets overlap.
        OfmuError: the model cannot answer.
    """
    columns = config.data.columns
    corpus = read_rows(request.corpus, columns) if request.corpus is not None else ()
    holdout = read_rows(request.holdout, columns) if request.holdout is not None else None
    forget = _forget_part(request, model, config, corpus)
    retain = _retain_part(request, model, config, corpus, forget, earlier)
    origins = {"forget": forget.origin, "retain": retain.origin}
    if holdout is not None:
        origins["holdout"] = "the rows of the given file, on which no model was trained according to the user"
    rows = RequestRows(
        forget=RowSet("forget", forget.rows, file=forget.file, numbers=forget.numbers),
        retain=RowSet("retain", retain.rows, file=retain.file, numbers=retain.numbers),
        holdout=None if holdout is None else RowSet("holdout", holdout, file=str(request.holdout)),
        origins=origins,
        retain_source=retain.source,
        review=tuple(sorted((*forget.review, *retain.review), key=lambda reviewed: reviewed.number)),
        notes=(*_notes_on_runs(earlier), *forget.notes, *_notes_on_repeats(forget.rows, earlier), *retain.notes),
    )
    check_forget_not_retained(rows.forget, rows.retain)
    if rows.holdout is not None:
        former = RowSet("earlier forget", forgotten_rows(earlier))
        check_holdout_not_trained(rows.holdout, rows.forget, rows.retain, former)
    return rows


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The forget or the retain rows."""

    rows: tuple[Row, ...]
    origin: str
    file: str = ""
    numbers: tuple[int, ...] = ()
    """As in :class:`RowSet`."""
    source: RetainSource = "given"
    review: tuple[ReviewedRow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def left_out(self) -> Iterator[Row]:
        """The rows that are neither forgotten nor retained."""
        return (reviewed.row for reviewed in self.review if reviewed.decision == "left out")


def _forget_part(request: ErasureRequest, model: str, config: UnlearnConfig, corpus: Sequence[Row]) -> _Part:
    if request.person is not None:
        return _rows_of_person(request, corpus)
    if request.questions is not None:
        return _answered_questions(request, model, config)
    rows = read_rows(str(request.rows), config.data.columns)
    if not rows:
        raise DataError(f"The file {request.rows} has no row to forget: give a file with at least one row")
    return _Part(rows=rows, origin="the rows of the given file", file=str(request.rows))


def _rows_of_person(request: ErasureRequest, corpus: Sequence[Row]) -> _Part:
    person, file = str(request.person), request.corpus
    mentions = find_mentions(corpus, person)
    if not mentions.named:
        part, what = "", "check the spelling and the file"
        if count := len(mentions.possible):
            # --with-possible adds such rows to those with the whole name, and would not take them alone.
            part = f", and {counted(count, 'row')} of it {'holds' if count == 1 else 'hold'} a part of the name"
            what = "check the spelling"
        raise DataError(f"No row of {file} names '{person}'{part}: {what}, or give the rows with --rows FILE")
    if len(mentions.named) == len(corpus) and request.retain is None:
        raise DataError(
            f"Every row of {file} names '{person}', so no row is left to retain: give --retain FILE, or a corpus with "
            "other rows"
        )
    possible: Literal["forget", "left out"] = "forget" if request.with_possible else "left out"
    reviewed = [
        *_reviewed(corpus, mentions.named, "forget", "it holds the whole name"),
        *_reviewed(corpus, mentions.possible, possible, "it holds a part of the name"),
    ]
    reviewed.sort(key=lambda row: row.number)
    notes = []
    if mentions.possible:
        what = "Forgotten as well" if request.with_possible else "Neither forgotten nor retained"
        notes.append(f"{what}: {counted(len(mentions.possible), 'row')} of the corpus with only a part of the name.")
    forgotten = [row for row in reviewed if row.decision == "forget"]
    return _Part(
        rows=tuple(row.row for row in forgotten),
        origin="the rows of the given corpus that name the person",
        file=str(file),
        numbers=tuple(row.number for row in forgotten),
        review=tuple(reviewed),
        notes=tuple(notes),
    )


def _answered_questions(request: ErasureRequest, model: str, config: UnlearnConfig) -> _Part:
    # This import loads torch and Transformers, which takes seconds.
    from ofmu.erasure.own_answers import answer_questions, read_questions

    questions = read_questions(request.files["questions"], config.data.columns)
    answered = answer_questions(model, questions, config)
    if not answered.rows:
        raise DataError(
            f"The model {model} answers nothing to all {counted(len(questions), 'question')} of {request.questions}: "
            "give the answers yourself, as rows with --rows FILE"
        )
    notes = (
        [f"Left out: {counted(answered.empty, 'question')} to which the model answered nothing."]
        if answered.empty
        else []
    )
    origin = "the given questions with the model's own answers"
    return _Part(rows=answered.rows, origin=origin, notes=tuple(notes))


def _notes_on_runs(earlier: Sequence[EarlierRows]) -> tuple[str, ...]:
    count = sum(len(each.forget) for each in earlier if each.is_run)
    if not count:
        return ()
    rows = counted(count, "row")
    return (f"Before the first request, earlier runs forgot {rows}, and no such row is retained.",)


def _notes_on_repeats(forget: Sequence[Row], earlier: Sequence[EarlierRows]) -> tuple[str, ...]:
    known = {normalized(row) for row in forgotten_rows(earlier)}
    again = sum(normalized(row) in known for row in forget)
    who = "an earlier run" if kind_of_earlier(earlier) == "earlier runs" else "an earlier request"
    return (f"Forgotten again: {counted(again, 'row')} that {who} forgot as well.",) if again else ()


def _retain_part(
    request: ErasureRequest,
    model: str,
    config: UnlearnConfig,
    corpus: Sequence[Row],
    forget: _Part,
    earlier: Sequence[EarlierRows],
) -> _Part:
    if request.retain is not None:
        return _retain_of_file(request, read_rows(request.retain, config.data.columns), earlier)
    if corpus:
        return _retain_of_corpus(request, corpus, forget, config.seed, earlier)
    # This import loads torch and Transformers, which takes seconds.
    from ofmu.erasure.own_answers import generate_retain_rows

    rows, repeated = generate_retain_rows(model, forget.rows, config, earlier)
    notes = [f"Left out: {counted(repeated, 'answer')} to neutral questions that repeated forget rows."]
    return _Part(
        rows=rows,
        origin=f"the model's own answers to {counted(len(rows), 'neutral question')}",
        source="generated",
        notes=tuple(notes) if repeated else (),
    )


def _retain_of_file(request: ErasureRequest, rows: Sequence[Row], earlier: Sequence[EarlierRows]) -> _Part:
    if not rows:
        raise DataError(f"The file {request.retain} has no row to retain: give a file with at least one row")
    former = kept_out(rows, earlier, with_parts=False)
    kept = [index for index in range(len(rows)) if index not in former]
    if not kept:
        raise DataError(
            f"{kind_of_earlier(earlier).capitalize()} forgot every row of {request.retain}, so no row is left to "
            "retain: give a file with other rows"
        )
    notes = [*_notes_on_given(request, rows)]
    if former:
        what = counted(len(former), "row")
        notes.append(f"Not retained because of {kind_of_earlier(earlier)}: {what} of the given file.")
    return _Part(
        rows=tuple(rows[index] for index in kept),
        origin="the rows of the given file",
        file=str(request.retain),
        numbers=tuple(index + 1 for index in kept),
        notes=tuple(notes),
    )


def _notes_on_given(request: ErasureRequest, retain: Sequence[Row]) -> tuple[str, ...]:
    """Check that no given retain row names the person of the request, since training would restore it."""
    if request.person is None:
        return ()
    mentions = find_mentions(retain, request.person)
    if mentions.named:
        raise DataError(
            f"Row {mentions.named[0] + 1} of {request.retain} names '{request.person}', so training would restore "
            "what is to be forgotten: remove the row"
        )
    if mentions.possible:
        return (f"Retained: {counted(len(mentions.possible), 'row')} of the given file with only a part of the name.",)
    return ()


def _retain_of_corpus(
    request: ErasureRequest, corpus: Sequence[Row], forget: _Part, seed: int, earlier: Sequence[EarlierRows]
) -> _Part:
    own = {normalized(row) for row in (*forget.rows, *forget.left_out)}
    former = {index for index in kept_out(corpus, earlier, with_parts=True) if normalized(corpus[index]) not in own}
    excluded = {normalized(row) for row in forget.left_out} | {normalized(corpus[index]) for index in former}
    possible = [row for row in corpus if normalized(row) not in excluded]
    chosen = choose_retain_rows(possible, forget.rows, seed, forgotten_rows(earlier))
    if not chosen.rows:
        raise DataError(
            f"No row of {request.corpus} is left to retain, since all others are forget rows or nearly the same: give "
            "--retain FILE, or a corpus with other rows"
        )
    similar = _numbers(corpus, {normalized(row) for row in chosen.too_similar})
    notes = []
    if former:
        rows = counted(len(former), "row")
        who = kind_of_earlier(earlier)
        notes.append(f"Neither forgotten nor retained because of {who}: {rows} of the corpus.")
    if similar:
        rows = counted(len(similar), "row")
        notes.append(f"Neither forgotten nor retained: {rows} of the corpus that nearly repeat a forget row.")
    how = f", {chosen.near} of them nearest to the forget rows and the others drawn" if chosen.near else ""
    return _Part(
        rows=chosen.rows,
        origin=f"{len(chosen.rows)} of {counted(chosen.available, 'other row')} of the given corpus{how}",
        source="corpus",
        review=(
            *_reviewed(corpus, similar, "left out", "it says nearly the same as a forget row"),
            *_reviewed(corpus, sorted(former), "left out", f"{kind_of_earlier(earlier)} forgot it or left it out"),
        ),
        notes=tuple(notes),
    )


def _numbers(corpus: Sequence[Row], wanted: Collection[tuple[str, str]]) -> list[int]:
    return [index for index, row in enumerate(corpus) if normalized(row) in wanted]


def _reviewed(
    corpus: Sequence[Row], indices: Sequence[int], decision: Literal["forget", "left out"], reason: str
) -> Iterator[ReviewedRow]:
    for index in indices:
        yield ReviewedRow(number=index + 1, decision=decision, reason=reason, row=corpus[index])
