"""One validated schema for a run: model, data, preparation, method, engine, evaluation and seed.

Every section is frozen; an unknown key or a value out of range raises :class:`ofmu.errors.ConfigError`
with the key's dotted path and, for a misspelt key, the nearest valid name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticSerializationError

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A frozen config section that refuses unknown keys and silent type coercions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True)

    def model_dump(self, **how: Any) -> dict[str, Any]:
        """Return the section as a mapping; see pydantic, which makes an error of a Ctrl-C that comes meanwhile."""
        try:
            return super().model_dump(**how)
        except PydanticSerializationError as error:
            if isinstance(error.__cause__, KeyboardInterrupt):
                raise error.__cause__ from None
            raise


class ScratchModelConfig(Section):
    """Shape of a Llama that is trained from scratch, with a byte-level BPE tokenizer of its own."""

    hidden_size: PositiveInt = 64
    intermediate_size: PositiveInt = 160
    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 4
    vocab_size: PositiveInt = 512
    """Upper bound on the tokenizer's vocabulary, special tokens included."""


class ResNetConfig(Section):
    """Shape of a transformers ResNet that is trained from scratch on images."""

    embedding_size: PositiveInt = 16
    """Channels after the stem, which quarters an image's height and width."""
    hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (16, 32, 64)
    """Channels of each stage; every stage after the first halves height and width."""
    depths: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 1, 1)
    """Layers of each stage."""
    layer_type: Literal["basic", "bottleneck"] = "basic"

    @model_validator(mode="after")
    def _as_many_depths_as_sizes(self) -> ResNetConfig:
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"model.resnet has {len(self.hidden_sizes)} hidden_sizes and {len(self.depths)} depths: "
                "give each stage one of both"
            )
        return self


class AdapterConfig(Section):
    """Whether all weights are unlearned, or low-rank additions to the linear layers of a language model."""

    kind: Literal["none", "lora"] = "none"
    """``lora``: the weights W stay, and W + (alpha/rank)·BA is unlearned by A and B alone, B starting at 0 (Hu et
    al., arXiv 2106.09685); what is saved are the sums, an ordinary model."""
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    target_modules: Literal["all_linear", "auto"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all_linear"
    """``all_linear``: every linear layer but the output layer; ``auto``: those that PEFT names for the architecture,
    as a rule the attention's query and value; or the ends of the layers' names."""


class ModelConfig(Section):
    """Where the model comes from."""

    path: str | None = None
    """Hub name or local directory of a causal LM with its tokenizer, or of an image classifier where the data are
    images; None trains ``scratch``, or ``resnet``, from nothing."""
    revision: str | None = None
    scratch: ScratchModelConfig = ScratchModelConfig()
    resnet: ResNetConfig = ResNetConfig()
    is_target: bool = False
    """True: ``path`` already is the fine-tuned target. False: preparation fine-tunes it on forget + retain."""
    base: str | None = None
    """With ``is_target``: the model before fine-tuning, from which the retrain reference is trained."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """``auto``: eager where exact derivatives need a second derivative of attention, sdpa otherwise."""
    adapter: AdapterConfig = AdapterConfig()

    @model_validator(mode="after")
    def _target_needs_a_path(self) -> ModelConfig:
        if self.is_target and self.path is None:
            raise ValueError("model.is_target needs model.path: name the fine-tuned model's directory")
        if self.base is not None and not self.is_target:
            raise ValueError("model.base is read only with model.is_target: name the base model as model.path")
        return self


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
    def kind(self) -> Literal["language", "vision"]:
        """What is unlearned: text or images."""
        return "vision" if self.source in VISION_SOURCES else "language"


class TrainingConfig(Section):
    """How preparation trains the target model and the retrain reference."""

    epochs: PositiveInt = 30
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.0
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the rate rises linearly; it then falls linearly to a tenth."""


class ReferenceConfig(Section):
    """What forget quality is measured against."""

    source: Literal["retrain", "model", "scores", "none"] = "retrain"
    """``retrain``: train it on the retain rows; ``model``: a saved model; ``scores``: our reference scores or an
    official TOFU log; ``none``: no reference, and forget quality is reported as missing."""
    path: str | None = None

    @model_validator(mode="after")
    def _path_where_needed(self) -> ReferenceConfig:
        if self.source in ("model", "scores") and self.path is None:
            raise ValueError(f"reference.source '{self.source}' needs reference.path: name the model or the file")
        return self


class MethodConfig(Section):
    """What all methods' settings share; each method's own stand beside it under ``ofmu/methods``."""

    name: str = "ofmu"
    """A method of ``ofmu.methods``, or one that ``module`` registers."""
    module: str | None = None
    """Importable module of the user's own that registers ``name``."""
    batch_size: PositiveInt = 8
    """Rows of D_f, and of D_r, in one global minibatch, whatever the number of ranks."""
    seed: NonNegativeInt | None = None
    """Seed of the run's own draws (its minibatches) from the same prepared target; None: the config's seed."""
    saliency_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the weights that a run may move, those with the largest |∇L_f| at the target; the others stay as they
    are, bit for bit (SalUn's mask, around any method). 1: all of them."""

    @property
    def exact(self) -> bool:
        """Whether second derivatives are taken by double backward, which fused attention lacks."""
        return False

    def refuse_impossible(self, config: UnlearnConfig) -> None:
        """Raise ValueError with one sentence where these settings cannot work with the rest of ``config``."""

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that a run under these will ignore."""
        return []


def method_settings(section: Mapping[str, Any] | None) -> type[MethodConfig]:
    """Return the settings' class of the method that a config's ``method`` section names; OFMU's by default.

    Raises:
        ConfigError: there is no such method.
    """
    from ofmu.methods import method_class

    section = section or {}
    return method_class(str(section.get("name", "ofmu")), section.get("module")).Settings


def _default_method() -> MethodConfig:
    return method_settings(None)()


class EngineConfig(Section):
    """Where the model's parameters and gradients live."""

    backend: Literal["deepspeed", "torch"] = "deepspeed"
    """``torch``: one process, no DeepSpeed; for notebooks, float64 and comparisons."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    precision: Literal["fp32", "bf16"] = "fp32"
    offload: Literal["none", "cpu"] = "none"
    """``cpu``: fp32 masters and gradient shards live in host memory (stages 1 to 3)."""
    micro_batch_size: PositiveInt | None = None
    """Rows per forward pass and rank; None: all of the rank's rows at once."""
    gradient_checkpointing: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: PositiveInt | None = None
    """Torch threads per process; None leaves torch's own choice."""


class EvaluationConfig(Section):
    """What is scored, and how."""

    batch_size: PositiveInt = 32
    rows: PositiveInt | None = None
    """At most so many rows of each evaluation set but the forget set, those with the lowest content hashes, so the
    same ones for every model; None: all."""
    max_new_tokens: PositiveInt = 200
    """Greedy tokens generated per question for ROUGE-L recall."""
    truth_ratio: Literal["geometric", "arithmetic"] = "geometric"
    rouge: bool = True
    """False skips generation; model utility then lacks its ROUGE components and says so."""
    in_scope: bool = False
    """Also score the forget rows' hard questions (paraphrase, multi-hop, another language), as far as they exist."""
    membership: bool = False
    """Membership attacks on forget rows against holdout rows; their gradient norms cost one backward pass a row."""
    alignment: bool = False
    """``ofmu evaluate``: compare hidden states with those of the retrained model, layer by layer."""
    attacks: tuple[Literal["relearning", "quantization_8", "quantization_4"], ...] = ()
    """``ofmu evaluate``: try to bring the forgotten back, by a few training steps or by rounding the weights."""
    functions: tuple[str, ...] = ()
    """Metrics of your own, as ``my_package.my_module:my_function``; see :data:`ofmu.evaluation.metrics.custom.ScoreFunction`.
    A search adds those among its objectives."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is empty, so that what earlier versions stored compares equal."""
        return {key: value for key, value in handler(self).items() if key not in ("functions", "rows") or value}


class UnlearnConfig(Section):
    """A whole run, from data to scores. ``config.model_dump(mode='json')`` is what a run directory stores."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    reference: ReferenceConfig = ReferenceConfig()
    method: SerializeAsAny[MethodConfig] = Field(default_factory=_default_method)
    engine: EngineConfig = EngineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: NonNegativeInt = 0
    cache_dir: str | None = None
    """Where prepared models live; None: $OFMU_CACHE, else ofmu under the user's cache directory."""

    @classmethod
    def read(cls, source: str | Path | None = None, overrides: Sequence[str] = ()) -> Self:
        """Read a YAML file, or a preset by its name, as the command line does; None stands for the defaults.

        ``overrides`` are entries such as ``method.inner_steps=5``. Sections that this class does not have, such as
        ``search`` where a single run is wanted, are left out.

        Raises:
            ConfigError: the file is missing, is not YAML, or a setting in it or in ``overrides`` is wrong.
        """
        from ofmu.config.files import apply_overrides, read_mapping, validate

        mapping = apply_overrides({} if source is None else read_mapping(source), overrides)
        others = {"search", "cluster", "compare"} - set(cls.model_fields)
        return validate(cls, {key: value for key, value in mapping.items() if key not in others})

    @model_validator(mode="before")
    @classmethod
    def _null_sections_are_defaults(cls, values: Any) -> Any:
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if value is not None}
        return values

    @field_validator("method", mode="before")
    @classmethod
    def _settings_of_the_named_method(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return method_settings(value).model_validate(value)

    @model_validator(mode="after")
    def _possible(self) -> UnlearnConfig:
        from ofmu.compatibility import refuse_impossible

        refuse_impossible(self)
        return self
