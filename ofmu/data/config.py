"""The ``data`` section of a config file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ofmu.config.base import PositiveInt, Section
from ofmu.data.kinds import TRAITS, KindTraits, TaskKind


class ColumnsConfig(Section):
    """Names of the columns in the user's own files."""

    question: str = "question"
    answer: str = "answer"
    text: str = "text"
    """Column of plain text, read where a file has no ``question`` column; all its tokens are the answer."""
    paraphrased_answer: str = "paraphrased_answer"
    perturbed_answer: str = "perturbed_answer"


class GeneratedDataConfig(Section):
    """Size of the embedded benchmark of fictitious authors."""

    authors: PositiveInt = 20
    forget_authors: PositiveInt = 4
    world_facts: PositiveInt = 20
    """Rows of each of the two general-knowledge sets (real authors, world facts)."""


class WmdpDataConfig(Section):
    """The four parts of WMDP: each a hub data set (``owner/name:config``), a local directory of that layout, a file."""

    domain: Literal["bio", "chem", "cyber"] = "cyber"
    """Which of the published parts are meant where the next four are left out; chem has no published corpora."""
    forget_corpus: str | None = None
    retain_corpus: str | None = None
    forget_questions: str | None = None
    """Multiple-choice questions whose answers are to be forgotten; columns question, choices, answer."""
    utility_questions: str | None = None
    """Questions whose answers are to be kept; None: MMLU."""
    max_documents: PositiveInt | None = None
    """Documents of each corpus, drawn by the seed; None: all."""
    scored_documents: PositiveInt = 100
    """Documents of each corpus whose likelihood is scored."""
    max_questions: PositiveInt | None = None
    """Questions of each set, drawn by the seed; None: all."""


class VisionDataConfig(Section):
    """Which labelled images are to be forgotten, and how images are read."""

    forget: Literal["class", "random"] = "class"
    """``class``: rows of ``forget_class``; ``random``: rows of all classes, drawn by the seed."""
    forget_class: str | int = 0
    """Name or index of the class to forget; an index counts the classes in the data's own order."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the class's training rows, or of all of them, to forget; None: all of a class, a tenth of all rows."""
    image_size: PositiveInt = 32
    """Height and width in pixels that every image is brought to."""
    image_column: str = "img"
    label_column: str | None = None
    """None: ``fine_label`` for CIFAR-100, else ``label``."""
    max_train_rows: PositiveInt | None = None
    """Training rows kept, drawn by the seed; None: all."""
    max_test_rows: PositiveInt | None = None
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the user's own images held out as test rows, where their folder has no ``test`` folder."""

    @model_validator(mode="after")
    def _something_is_retained(self) -> VisionDataConfig:
        if self.forget == "random" and self.fraction == 1:
            raise ValueError("data.vision.fraction 1 of all rows leaves none to retain: lower it")
        return self


VISION_SOURCES = frozenset({"cifar10", "cifar100", "images"})


class DataConfig(Section):
    """The forget, retain and holdout rows and the evaluation sets."""

    source: Literal["generated", "tofu", "wmdp", "files", "cifar10", "cifar100", "images"] = "generated"
    path: str | None = None
    """TOFU: hub name (default ``locuslab/TOFU``) or a local directory of its JSON files. CIFAR: hub name (default
    ``uoft-cs/cifar10``, ``uoft-cs/cifar100``) or a local directory of ``train*.parquet`` and ``test*.parquet``.
    Images: a folder with one folder per class, or with two of those, ``train`` and ``test``."""
    split: Literal["forget01", "forget05", "forget10"] = "forget10"
    authors: Annotated[int, Field(ge=2, le=200)] | None = None
    """TOFU: keep this many authors, a tenth of them (at least one) to forget; None keeps the split as published."""
    train_on_general_knowledge: bool = False
    """TOFU: add real authors and world facts to the retain rows; a model trained from scratch knows neither."""
    generated: GeneratedDataConfig = GeneratedDataConfig()
    wmdp: WmdpDataConfig = WmdpDataConfig()
    vision: VisionDataConfig = VisionDataConfig()
    forget: str | None = None
    retain: str | None = None
    holdout: str | None = None
    columns: ColumnsConfig = ColumnsConfig()
    prompt_template: str = "Question: {question}\nAnswer:"
    """Used where the tokenizer has no chat template; the answer follows after one space."""
    use_chat_template: bool = True
    max_length: PositiveInt = 512
    """Tokens of prompt and answer kept, EOS included; an answer is cut, a prompt never."""

    @property
    def kind(self) -> TaskKind:
        """What is unlearned: text or images."""
        return "vision" if self.source in VISION_SOURCES else "language"

    @property
    def traits(self) -> KindTraits:
        """What this kind of task supports."""
        return TRAITS[self.kind]
