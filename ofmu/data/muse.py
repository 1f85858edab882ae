"""MUSE (Shi et al., arXiv 2407.06460): texts to forget, what models remember of them, and texts for membership attacks.

The hub's data set has configurations with splits. A local directory is a clone of it, or has a folder for each
configuration and a JSONL file for each split, such as ``knowmem/forget_qa.jsonl``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from ofmu.data.config import DataConfig
from ofmu.data.files import Record, read_records
from ofmu.data.hub import load_hub_split, local_copy
from ofmu.data.rows import Prompting, Row, RowSet, UnlearnData
from ofmu.data.sampler import sample_in_order
from ofmu.errors import ConfigError, DataError, nearest_name
from ofmu.io.files import looked_for
from ofmu.models.hub import looks_like_hub_id

HUB_NAMES = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
_VERBATIM_TOKENS, _KNOWLEDGE_TOKENS = 128, 32
_QUESTION = "Question: {question}\nAnswer:"

_ReadPart = Callable[[str], list[Record]]
"""Returns the records of a part, such as ``knowmem/forget_qa``."""


def load_muse(config: DataConfig, seed: int) -> UnlearnData:
    """Load the texts that ``config.muse`` names, and the evaluation sets of MUSE. ``seed`` draws samples.

    The set ``forget`` holds the excerpts whose continuation is generated. ``forget_knowledge`` and ``retain_knowledge``
    hold questions, which are asked after MUSE's own examples. ``members`` are forget texts for membership attacks.

    Raises:
        ConfigError: a part is not named as configuration and split.
        DataError: a part cannot be loaded, is empty, or lacks a column.
    """
    muse = config.muse
    source = config.path or HUB_NAMES[muse.corpus]
    read = _part_reader(source)

    def texts(part: str) -> tuple[Row, ...]:
        return tuple(Row(question="", answer=text) for text in _column(read(part), "text", f"{source} ({part})"))

    def trained(part: str) -> tuple[Row, ...]:
        return sample_in_order(texts(part), muse.max_documents, random.Random(f"{seed}/muse"))

    def answered(part: str, question: str, answer: str) -> tuple[Row, ...]:
        records, where = read(part), f"{source} ({part})"
        pairs = zip(_column(records, question, where), _column(records, answer, where), strict=True)
        return tuple(Row(question=asked, answer=right) for asked, right in pairs)

    def knowledge(name: str) -> RowSet:
        prompting = Prompting(_few_shot(answered(f"knowmem/{name}_qa_icl", "question", "answer")), _KNOWLEDGE_TOKENS)
        return RowSet(f"{name}_knowledge", answered(f"knowmem/{name}_qa", "question", "answer"), prompting)

    verbatim = RowSet("forget", answered("verbmem/forget", "prompt", "gt"), Prompting("{question}", _VERBATIM_TOKENS))
    return UnlearnData(
        forget=RowSet("forget", trained(muse.forget)),
        retain=RowSet("retain", trained(muse.retain)),
        holdout=RowSet("holdout", texts("privleak/holdout")),
        evaluation={
            "forget": verbatim,
            "forget_knowledge": knowledge("forget"),
            "retain_knowledge": knowledge("retain"),
            "members": RowSet("members", texts("privleak/forget")),
        },
    )


def _few_shot(examples: tuple[Row, ...]) -> str:
    """Return the prompt template of a question after examples."""
    shots = "".join(f"Question: {row.question}\nAnswer: {row.answer}\n\n" for row in examples)
    return shots + _QUESTION


def _part_reader(source: str) -> _ReadPart:
    folder = Path(source).expanduser()
    if not folder.is_dir() and not looks_like_hub_id(source):
        raise DataError(
            f"There is no MUSE directory {looked_for(source)}: set data.path to the folder that holds knowmem, verbmem "
            "and privleak"
        )

    def read(part: str) -> list[Record]:
        subset, _, split = _checked(part).partition("/")
        file = folder / subset / f"{split}.jsonl"
        # A clone of the hub's data set has a README.md that says where its parts are.
        if folder.is_dir() and (file.is_file() or not (folder / "README.md").is_file()):
            return read_records(file)
        name = str(folder) if folder.is_dir() else source
        return list(load_hub_split(name, split, subset=subset, instead=local_copy("JSONL")))

    return read


def _checked(part: str) -> str:
    """Return the name of a part.

    Raises:
        ConfigError: it is not a configuration and a split.
    """
    names = part.split("/")
    if len(names) != 2 or not all(name.replace("_", "").isalnum() for name in names):
        raise ConfigError(f"'{part}' is no part of MUSE: name configuration and split, such as raw/forget")
    return part


def _column(records: list[Record], name: str, source: str) -> list[str]:
    if not records:
        raise DataError(f"The part {source} of MUSE is empty: name a part with at least one row")
    found = []
    for number, record in enumerate(records, start=1):
        if name not in record:
            raise DataError(f"Row {number} of {source} has no column '{name}': {nearest_name(name, map(str, record))}")
        if not isinstance(record[name], str) or not record[name].strip():
            raise DataError(f"Row {number} of {source} has no text in column '{name}': write text there")
        found.append(record[name])
    return found
