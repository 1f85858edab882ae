"""WMDP (Li et al., arXiv 2403.03218): corpora of hazardous and harmless text, and multiple-choice questions.

The forget corpus is unlearned, and the retain corpus is retained. After unlearning, answers to the forget questions
should be as good as chance. Answers to the utility questions (MMLU) should be as good as before. Each of the four parts
is a hub data set, a local directory with the hub's layout, or the user's own file.
"""

from __future__ import annotations

import random

from ofmu.data.config import DataConfig, WmdpDataConfig
from ofmu.data.files import Record, read_records
from ofmu.data.hub import load_hub_split
from ofmu.data.questions import QuestionSet, question_from_record
from ofmu.data.rows import Row, RowSet, UnlearnData
from ofmu.data.sampler import sample_in_order
from ofmu.errors import ConfigError, DataError, nearest_name
from ofmu.io.files import expanded

CORPORA = "cais/wmdp-corpora"
BIO_FORGET = "cais/wmdp-bio-forget-corpus"
"""The authors of WMDP give access to this corpus on request."""
QUESTIONS = "cais/wmdp"
UTILITY = "cais/mmlu:all"
_INSTEAD = "name a local file or directory in data.wmdp"


def load_wmdp(config: DataConfig, seed: int) -> UnlearnData:
    """Load the corpora and the questions that ``config.wmdp`` names. ``seed`` draws samples where a limit is set.

    Raises:
        ConfigError: the domain has no published corpora, and the config names none.
        DataError: a part cannot be loaded, is empty, or lacks a column.
    """
    wmdp, domain = config.wmdp, config.wmdp.domain
    if domain == "chem" and None in (wmdp.forget_corpus, wmdp.retain_corpus):
        raise ConfigError("WMDP publishes no chem corpora: set data.wmdp.forget_corpus and data.wmdp.retain_corpus")
    forget_name = wmdp.forget_corpus or (BIO_FORGET if domain == "bio" else f"{CORPORA}:{domain}-forget-corpus")
    retain_name = wmdp.retain_corpus or f"{CORPORA}:{domain}-retain-corpus"
    forget = _texts(forget_name, config, seed)
    retain = _texts(retain_name, config, seed)

    def scored(rows: tuple[Row, ...]) -> tuple[Row, ...]:
        return sample_in_order(rows, wmdp.scored_documents, _generator(seed))

    return UnlearnData(
        forget=RowSet("forget", forget),
        retain=RowSet("retain", retain),
        holdout=None,
        evaluation={"forget": RowSet("forget", scored(forget)), "retain": RowSet("retain", scored(retain))},
        questions={
            "forget": _questions("forget", wmdp.forget_questions or f"{QUESTIONS}:wmdp-{domain}", wmdp, seed),
            "utility": _questions("utility", wmdp.utility_questions or UTILITY, wmdp, seed),
        },
    )


def _generator(seed: int) -> random.Random:
    return random.Random(f"{seed}/wmdp")


def _texts(source: str, config: DataConfig, seed: int) -> tuple[Row, ...]:
    """Return a sample of a corpus's documents. Empty documents are left out."""
    column = config.columns.text
    rows = []
    for number, record in enumerate(_records(source, "train"), start=1):
        if column not in record:
            hint = nearest_name(column, map(str, record))
            raise DataError(f"Document {number} of {source} has no column '{column}': set data.columns.text; {hint}")
        if not isinstance(record[column], str):
            raise DataError(f"Document {number} of {source} has no text in column '{column}': write text there")
        if record[column].strip():
            rows.append(Row(question="", answer=record[column]))
    return sample_in_order(rows, config.wmdp.max_documents, _generator(seed))


def _questions(name: str, source: str, wmdp: WmdpDataConfig, seed: int) -> QuestionSet:
    records = _records(source, "test")
    questions = [question_from_record(record, source, number) for number, record in enumerate(records, start=1)]
    if not questions:
        raise DataError(f"The questions {source} are empty: name a set with at least one question")
    return QuestionSet(name, sample_in_order(questions, wmdp.max_questions, _generator(seed)))


def _records(source: str, split: str) -> list[Record]:
    """Read a file, or a split of a data set: ``owner/name`` or a directory, with ``:subset`` if it has several."""
    path = expanded(source)
    if path.suffix and not path.is_dir():
        return read_records(path)
    name, _, subset = source.partition(":")
    return list(load_hub_split(name, split, subset=subset or None, instead=_INSTEAD))
