"""The ``data`` section of a config file."""

from __future__ import annotations

from datetime import date
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ofmu.config.base import PositiveInt, Section
from ofmu.data.kinds import TRAITS, KindTraits, TaskKind


class ColumnsConfig(Section):
    """Names of the columns in the user's own files."""

    question: str = "question"
    """Column of the question. A file without this column holds plain text."""
    answer: str = "answer"
    """Column of the answer."""
    text: str = "text"
    """Column of plain text, read if a file has no question column. All tokens of the text count as the answer. WMDP:
    column of the corpora's texts."""
    paraphrased_answer: str = "paraphrased_answer"
    """Column of the answer in other words. The file may lack this column."""
    perturbed_answer: str = "perturbed_answer"
    """Column of wrong answers: a list of texts, or one text. In CSV, the list is written as JSON, Python or NumPy write
    lists. The file may lack this column."""


class GeneratedDataConfig(Section):
    """Size of the generated benchmark of fictitious authors."""

    authors: PositiveInt = 20
    """Number of authors that the target is trained on."""
    forget_authors: PositiveInt = 4
    """Number of these authors to forget. As many further authors become the holdout rows."""
    world_facts: PositiveInt = 20
    """Rows of each of the two general-knowledge sets (real authors, world facts)."""


class WmdpDataConfig(Section):
    """The parts of WMDP: two corpora and two sets of multiple-choice questions.

    Each part is a hub data set (``owner/name:config``), a local directory with the same layout, or a file.
    """

    domain: Literal["bio", "chem", "cyber"] = "cyber"
    """The published domain whose parts replace the parts that are None. WMDP publishes no corpora for chem."""
    forget_corpus: str | None = None
    """Texts to forget. None: the domain's published forget corpus."""
    retain_corpus: str | None = None
    """Texts to retain. None: the domain's published retain corpus."""
    forget_questions: str | None = None
    """Multiple-choice questions whose answers are to be forgotten, with columns question, choices and answer. None: the
    domain's published questions."""
    utility_questions: str | None = None
    """Multiple-choice questions whose answers are to be retained. None: MMLU."""
    max_documents: PositiveInt | None = None
    """Upper bound on the documents of each corpus. The seed draws them. None: all documents."""
    scored_documents: PositiveInt = 100
    """Upper bound on the documents of each corpus whose likelihood is scored. The seed draws them."""
    max_questions: PositiveInt | None = None
    """Upper bound on the questions of each set. The seed draws them. None: all questions."""


class MuseDataConfig(Section):
    """The parts of MUSE: its corpus, the texts to forget, and the texts to retain."""

    corpus: Literal["news", "books"] = "news"
    """The published corpus that is loaded if ``data.path`` is None."""
    forget: str = "raw/forget"
    """The texts to forget, as configuration and split of the data set. ``sust/forget_1`` to ``sust/forget_4`` are the
    sequential requests, and ``scal/forget_1`` to ``scal/forget_4`` the growing ones."""
    retain: str = "raw/retain1"
    """The texts to retain, as configuration and split."""
    max_documents: PositiveInt | None = None
    """Upper bound on the texts of each of the two sets. The seed draws them. None: all texts."""


class RwkuDataConfig(Section):
    """The person of RWKU to forget, and the texts to train on."""

    subject: str | None = None
    """The person, by the name in the data set's ``forget_target``, such as Stephen King. Required if ``source`` is
    rwku."""
    corpus: Literal["train_positive_llama3", "train_positive_phi3", "train_original_passage"] = "train_positive_llama3"
    """The texts about people: what Llama-3-8B-Instruct or Phi-3-mini-4k-instruct wrote about them, or passages of
    Wikipedia."""
    retain_people: PositiveInt = 20
    """Number of other people, whose texts are the retain rows. The seed draws them."""
    max_documents: PositiveInt | None = None
    """Upper bound on the texts to forget, and on those to retain. The seed draws them. None: all texts."""


class VisionDataConfig(Section):
    """Which labelled images are forgotten, and how images are read."""

    forget: Literal["class", "random"] = "class"
    """``class``: forget rows of ``forget_class``. ``random``: forget rows of all classes, drawn by the seed."""
    forget_class: str | int = 0
    """Name or index of the class to forget. An index counts from 0 in the order of the data's classes."""
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of training rows to forget: of the class's rows, or of all rows if ``forget`` is random. None: the whole
    class, or a tenth of all rows."""
    image_size: PositiveInt = 32
    """Height and width in pixels. Images of another size are resized."""
    image_column: str = "img"
    """Column of the images in Parquet files."""
    label_column: str | None = None
    """Column of the class numbers in Parquet files. None: ``fine_label`` for CIFAR-100, ``label`` for CIFAR-10."""
    max_train_rows: PositiveInt | None = None
    """Upper bound on the training rows. The seed draws them. None: all rows."""
    max_test_rows: PositiveInt | None = None
    """Upper bound on the test rows. The seed draws them. None: all rows."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of each class that is held out for the test rows, if an image folder has no ``test`` folder."""

    @model_validator(mode="after")
    def _check_retain_rows_remain(self) -> VisionDataConfig:
        if self.forget == "random" and self.fraction == 1:
            raise ValueError("data.vision.fraction 1 of all rows leaves no row to retain: lower data.vision.fraction")
        return self


PROMPT_KEYS = ("prompt_template", "use_chat_template", "template_date", "max_length", "truncation")
"""Keys of the section ``data`` that decide how rows become tokens."""

VISION_SOURCES = frozenset({"cifar10", "cifar100", "images"})


class DataConfig(Section):
    """The forget, retain and holdout rows, and the evaluation sets."""

    added_later: ClassVar[frozenset[str]] = frozenset(("muse", "rwku", "earlier"))

    source: Literal["generated", "tofu", "wmdp", "muse", "lume", "rwku", "files", "cifar10", "cifar100", "images"] = (
        "generated"
    )
    """Where the rows come from. ``generated``: fictitious authors from the seed. ``files``: the user's own rows.
    ``images``: a folder of labelled images. The other sources are published benchmarks."""
    path: str | None = None
    """TOFU: a hub name, or a local directory of TOFU's JSON files; None: ``locuslab/TOFU``. MUSE: a hub name, or a
    clone of the data set; None: by ``data.muse.corpus``. RWKU: the same; None: ``jinzhuoran/RWKU``. LUME: a
    directory of ``forget.jsonl`` and ``retain.jsonl``; required. CIFAR: a hub name, or a local directory of
    ``train*.parquet`` and ``test*.parquet``; None: ``uoft-cs/cifar10`` or ``uoft-cs/cifar100``. Images: a folder
    with one folder per class, or with two such folders, ``train`` and ``test``; required."""
    split: Literal["forget01", "forget05", "forget10"] = "forget10"
    """TOFU: the published forget split, which holds 1, 5 or 10 percent of the authors."""
    authors: Annotated[int, Field(ge=2, le=200)] | None = None
    """TOFU: number of authors to keep. A tenth of them, at least one, is forgotten. None: the whole split."""
    train_on_general_knowledge: bool = False
    """TOFU: add real authors and world facts to the retain rows. A model trained from scratch knows neither."""
    generated: GeneratedDataConfig = GeneratedDataConfig()
    wmdp: WmdpDataConfig = WmdpDataConfig()
    muse: MuseDataConfig = MuseDataConfig()
    rwku: RwkuDataConfig = RwkuDataConfig()
    vision: VisionDataConfig = VisionDataConfig()
    forget: str | None = None
    """File of the rows to forget: JSONL, JSON, CSV or Parquet. Required if ``source`` is files."""
    retain: str | None = None
    """File of the rows to retain. Required if ``source`` is files."""
    holdout: str | None = None
    """File of rows that no model is trained on, for membership attacks. None: no holdout rows."""
    earlier: tuple[str, ...] = ()
    """Files of rows that earlier runs forgot: texts with the default columns, or images in safetensors. These rows are
    left out of the retain rows and of the sets that utility is scored on. The option ``--after`` of ``ofmu unlearn``
    writes the files and sets this key."""
    columns: ColumnsConfig = ColumnsConfig()
    prompt_template: str = "Question: {question}\nAnswer:"
    """Text before an answer, if the tokenizer has no chat template. The answer follows after one space."""
    use_chat_template: bool = True
    """Use the tokenizer's chat template if there is one."""
    template_date: date = date(2024, 7, 26)
    """The date that a chat template prints as today's, so that prompts and scores are the same every day."""
    max_length: PositiveInt = 512
    """Upper bound on the tokens of prompt and answer, EOS included. A longer answer to a question is cut, and a warning
    says how much. Longer plain text is split. A prompt is never cut."""
    truncation: bool = False
    """False: plain text longer than ``max_length`` is split into chunks, and all chunks are trained and scored. True:
    only the first ``max_length`` tokens are kept, as ``truncation`` of Transformers does."""

    @property
    def kind(self) -> TaskKind:
        """What is unlearned: text or images."""
        return "vision" if self.source in VISION_SOURCES else "language"

    @property
    def traits(self) -> KindTraits:
        """What this kind of task supports."""
        return TRAITS[self.kind]
