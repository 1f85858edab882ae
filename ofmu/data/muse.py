"""MUSE (Shi et al., arXiv 2407.06460): texts to forget, what models remember of them, and texts for membership attacks.

:mod:`ofmu.data.hub_parts` says what a local directory holds, such as ``knowmem/forget_qa.jsonl``.
"""

from __future__ import annotations

import random

from ofmu.data.config import DataConfig
from ofmu.data.hub_parts import part_reader, text_column
from ofmu.data.rows import Prompting, Row, RowSet, UnlearnData
from ofmu.data.sampler import sample_in_order

HUB_NAMES = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
_VERBATIM_TOKENS, _KNOWLEDGE_TOKENS = 128, 32
_QUESTION = "Question: {question}\nAnswer:"


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
    read = part_reader(source, "MUSE", "knowmem, verbmem and privleak", "raw/forget")

    def texts(part: str) -> tuple[Row, ...]:
        return tuple(
            Row(question="", answer=text) for text in text_column(read(part), "text", f"{source} ({part})", "MUSE")
        )

    def trained(part: str) -> tuple[Row, ...]:
        return sample_in_order(texts(part), muse.max_documents, random.Random(f"{seed}/muse"))

    def answered(part: str, question: str, answer: str) -> tuple[Row, ...]:
        records, where = read(part), f"{source} ({part})"
        asked, right = (text_column(records, name, where, "MUSE") for name in (question, answer))
        return tuple(Row(question=text, answer=reply) for text, reply in zip(asked, right, strict=True))

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
