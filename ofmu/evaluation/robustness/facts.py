"""The tokens of an answer that state its fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ofmu.data.encoding import Tokenizer
from ofmu.data.row_encoder import RowEncoder
from ofmu.data.rows import Example, Row


@dataclass(frozen=True, slots=True)
class Fact:
    """One encoded row, and which of its tokens are the fact."""

    example: Example
    start: int
    """Index of the fact's first token in ``example.input_ids``; at least 1."""
    stop: int
    """Index after its last token."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Ids of the fact's tokens."""
        return self.example.input_ids[self.start : self.stop]


def find_facts(encoder: RowEncoder, tokenizer: Tokenizer, set_name: str, rows: Sequence[Row]) -> list[Fact]:
    """Return the facts of the rows: the tokens of each row's ``entity``.

    If no row has an entity, the fact of a row is its whole answer without EOS, and each chunk of a plain text counts as
    a row. Otherwise rows without an entity are left out. So are rows whose answer is cut before its entity ends.

    Raises:
        DataError: a row cannot be encoded.
    """
    facts: list[Fact] = []
    with_entity = any(row.entity is not None for row in rows)
    for row in rows:
        if with_entity and row.entity is None:
            continue
        for example in encoder.encode(set_name, row.question, row.answer):
            span = _answer_span(example, tokenizer) if row.entity is None else entity_span(example, row, tokenizer)
            if span is not None:
                facts.append(Fact(example, *span))
    return facts


def entity_span(example: Example, row: Row, tokenizer: Tokenizer) -> tuple[int, int] | None:
    """Return the indices of the first token of a row's entity, and of the token after its last one.

    A token that holds a part of the entity belongs to it. None: the tokens do not spell the whole entity, since the
    answer was cut or the tokenizer changes the text.
    """
    ids = example.input_ids[example.answer_start :]
    text = _decode(tokenizer, ids)
    first = text.find(row.entity or "")
    if first < 0:
        return None
    last = first + len(row.entity or "")
    # A token of a part of a character decodes to a replacement character, which is no common start.
    read = [_common_start(text, _decode(tokenizer, ids[:count])) for count in range(len(ids) + 1)]
    # Texts of more tokens are not shorter, and a decoder may add a space that a later token takes back.
    ends = list(accumulate(read, max))
    held = [index for index in range(len(ids)) if ends[index] < last and max(ends[index + 1], ends[index] + 1) > first]
    return example.answer_start + held[0], example.answer_start + held[-1] + 1


def _answer_span(example: Example, tokenizer: Tokenizer) -> tuple[int, int] | None:
    stop = len(example.input_ids) - (example.input_ids[-1] == tokenizer.eos_token_id)
    return (example.answer_start, stop) if stop > example.answer_start else None


def _common_start(text: str, other: str) -> int:
    """Return the number of characters with which both texts begin."""
    equal = (index for index, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1])
    return next(equal, min(len(text), len(other)))


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
