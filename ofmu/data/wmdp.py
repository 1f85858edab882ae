"""WMDP (Li et al., arXiv 2403.03218): corpora of hazardous and harmless text, and questions that measure both.

The corpora are what is unlearned and kept; the forget questions should then be answered by chance and the utility
questions (MMLU or the like) as before. Each of the four parts may be a hub data set, a local directory in the
hub's layout, or a file of one's own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from ofmu.data.config import DataConfig
from ofmu.data.files import read_records
from ofmu.data.questions import QuestionSet, question_from_record
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.errors import ConfigError, DataError, nearest_name

CORPORA = "cais/wmdp-corpora"
BIO_FORGET = "cais/wmdp-bio-forget-corpus"
"""Published apart, on request."""
QUESTIONS = "cais/wmdp"
UTILITY = "cais/mmlu:all"

ItemT = TypeVar("ItemT")


def load_wmdp(config: DataConfig, seed: int) -> UnlearnData:
    """Load the corpora and questions that ``config.wmdp`` names; ``seed`` draws samples where limits are set.

    Raises:
        ConfigError: the domain's corpora are not published and none are named.
        DataError: a part cannot be loaded, is empty, or lacks a column.
    """
    wmdp, domain = config.wmdp, config.wmdp.domain
    if domain == "chem" and None in (wmdp.forget_corpus, wmdp.retain_corpus):
        raise ConfigError("WMDP publishes no chem corpora: set data.wmdp.forget_corpus and data.wmdp.retain_corpus")
    forget_name = wmdp.forget_corpus or (BIO_FORGET if domain == "bio" else f"{CORPORA}:{domain}-forget-corpus")
    retain_name = wmdp.retain_corpus or f"{CORPORA}:{domain}-retain-corpus"
    forget = _texts(forget_name, config.columns.text, wmdp.max_documents, seed)
    retain = _texts(retain_name, config.columns.text, wmdp.max_documents, seed)
    return UnlearnData(
        forget=RowSet("forget", forget),
        retain=RowSet("retain", retain),
        holdout=None,
        evaluation={
            "forget": RowSet("forget", sample(forget, wmdp.scored_documents, seed)),
            "retain": RowSet("retain", sample(retain, wmdp.scored_documents, seed)),
        },
        questions={
            "forget": _questions("forget", wmdp.forget_questions or f"{QUESTIONS}:wmdp-{domain}", wmdp, seed),
            "utility": _questions("utility", wmdp.utility_questions or UTILITY, wmdp, seed),
        },
    )


def sample(items: Sequence[ItemT], most: int | None, seed: int) -> tuple[ItemT, ...]:
    """Return at most ``most`` items, drawn by ``seed`` and in their order."""
    if most is None or len(items) <= most:
        return tuple(items)
    chosen = random.Random(f"{seed}/wmdp").sample(range(len(items)), most)
    return tuple(items[index] for index in sorted(chosen))


def _texts(source: str, column: str, most: int | None, seed: int) -> tuple[Row, ...]:
    rows = []
    for number, record in enumerate(_records(source, "train"), start=1):
        if column not in record:
            hint = nearest_name(column, map(str, record))
            raise DataError(f"Document {number} of {source} has no column '{column}': set data.columns.text; {hint}")
        if not isinstance(record[column], str):
            raise DataError(f"Document {number} of {source} has no text in column '{column}'")
        if record[column].strip():
            rows.append(Row(question="", answer=record[column]))
    return sample(rows, most, seed)


def _questions(name: str, source: str, wmdp: Any, seed: int) -> QuestionSet:
    records = _records(source, "test")
    found = [question_from_record(record, source, number) for number, record in enumerate(records, start=1)]
    if not found:
        raise DataError(f"The questions {source} are empty: name a set with at least one question")
    return QuestionSet(name, sample(found, wmdp.max_questions, seed))


def _records(source: str, split: str) -> list[dict[str, Any]]:
    """Read a file, or a split of a data set: ``owner/name`` or a directory, with ``:config`` where it has several."""
    path = Path(source).expanduser()
    if path.suffix and not path.is_dir():
        return read_records(path)
    name, _, chosen = source.partition(":")
    # slow to import, and needless for files
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return list(load_dataset(str(Path(name).expanduser()), chosen or None, split=split))
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"The data set '{source}' cannot be loaded ({reason}): check name, config and connection, or name a "
            "local file or directory in data.wmdp"
        ) from error
