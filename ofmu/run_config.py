"""The config of a run. It composes the sections, and it checks what no single section can check.

Each section lives beside the code that reads it:

- ``model``: :class:`ofmu.models.config.ModelConfig`
- ``data``: :class:`ofmu.data.config.DataConfig`
- ``training``: :class:`ofmu.finetuning.config.TrainingConfig`
- ``reference`` and ``evaluation``: :mod:`ofmu.evaluation.config`
- ``method``: :class:`ofmu.methods.config.MethodConfig`, and the class of each method in its file
- ``engine``: :class:`ofmu.engine.config.EngineConfig`

Every section is frozen. :meth:`UnlearnConfig.read` answers an unknown key, or a value out of range, with one sentence
that names the dotted key. For a misspelt key the sentence names the nearest valid key.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, SerializeAsAny, field_validator, model_validator

from ofmu.config.base import Section, Seed
from ofmu.config.files import apply_overrides, deep_copy, is_preset, is_section, read_mapping, shortened, validate
from ofmu.data.config import DataConfig
from ofmu.data.kinds import KindTraits
from ofmu.engine.config import EngineConfig
from ofmu.errors import ConfigError
from ofmu.evaluation.config import EvaluationConfig, ReferenceConfig
from ofmu.finetuning.config import TrainingConfig
from ofmu.io.text import listed
from ofmu.methods.config import MethodConfig
from ofmu.methods.registry import method_class, method_config
from ofmu.models.config import ModelConfig


def _default_method() -> MethodConfig:
    return method_config(None)()


class UnlearnConfig(Section):
    """A whole run, from data to scores. A run directory stores ``config.model_dump(mode='json')``."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    reference: ReferenceConfig = ReferenceConfig()
    method: SerializeAsAny[MethodConfig] = Field(default_factory=_default_method)
    engine: EngineConfig = EngineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: Seed = 0
    """Seed of every random choice: data, training, minibatches, suggestions of a search."""
    cache_dir: str | None = None
    """Directory of prepared models. None: $OFMU_CACHE, else ``ofmu`` under the user's cache directory."""

    @classmethod
    def read(cls, source: str | Path | None = None, overrides: Sequence[str] = ()) -> Self:
        """Read a config as the command line does.

        Sections that this class does not have are left out, such as ``search`` where a single run is wanted.

        Args:
            source: a YAML file, or the name of a preset. None stands for the defaults.
            overrides: entries such as ``method.inner_steps=5``; see :func:`override`.

        Raises:
            ConfigError: the file is missing, is not YAML, or a setting in the file or in ``overrides`` is wrong.
        """
        others = {"search", "cluster", "compare", "tracking"} - set(cls.model_fields)
        return validate(cls, read_overridden(source, overrides, unused=others))

    @classmethod
    def section_schema(cls, name: str, mapping: Mapping[str, Any]) -> type[BaseModel] | None:
        """Return the config class of the method for the section ``method``."""
        return method_config(mapping.get("method")) if name == "method" else None

    @property
    def traits(self) -> KindTraits:
        """What this kind of task supports."""
        return self.data.traits

    @property
    def seed_of_run(self) -> int:
        """The seed of the run's minibatches."""
        return self.seed if self.method.seed is None else self.method.seed

    @property
    def plugins(self) -> dict[str, str]:
        """The modules of the user that a run imports, and the folder of tasks, each with the key that names it."""
        evaluation = self.evaluation
        modules = {name.partition(":")[0]: "evaluation.custom_metrics" for name in evaluation.custom_metrics}
        if evaluation.lm_eval_path is not None:
            modules[evaluation.lm_eval_path] = "evaluation.lm_eval_path"
        return modules if self.method.module is None else {**modules, self.method.module: "method.module"}

    @property
    def variant_settings(self) -> Mapping[str, Any]:
        """What ``method.variant`` sets, by the name of the setting; empty without a variant."""
        variants = method_class(self.method.name, self.method.module).variants
        return variants.get(getattr(self.method, "variant", None) or "", {})

    def departures(self) -> dict[str, str]:
        """Return one sentence for every setting that differs from what ``method.variant`` sets, by dotted key."""
        variant = getattr(self.method, "variant", None)
        values = {name: (getattr(self.method, name), value) for name, value in self.variant_settings.items()}
        return {
            f"method.{name}": f"method.{name} is {own}, which replaces the {value} of method.variant '{variant}'"
            for name, (own, value) in values.items()
            if own != value
        }

    def ineffective(self) -> list[str]:
        """Return one sentence for every setting that has no effect."""
        notes = self.method.ineffective()
        if self.engine.backend == "torch" and self.engine.stage not in (0, 2):
            notes.append("engine.zero_stage has no effect: engine.backend is 'torch'")
        if self.evaluation.depth and self.data.kind == "language" and self.reference.source in ("scores", "none"):
            notes.append(
                f"evaluation.depth has no effect on a run: reference.source is '{self.reference.source}', so there is "
                "no retrained model"
            )
        if not self.evaluation.lm_eval:
            for name in ("lm_eval_path", "lm_eval_limit", "lm_eval_fewshot"):
                if getattr(self.evaluation, name) is not None:
                    notes.append(f"evaluation.{name} has no effect: evaluation.lm_eval names no task")
        for name in self.traits.ignored_evaluation:
            if getattr(self.evaluation, name):
                notes.append(f"evaluation.{name} has no effect: it is for text, and these data are images")
        return notes

    @model_validator(mode="before")
    @classmethod
    def _null_sections_are_defaults(cls, values: Any) -> Any:
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if value is not None}
        return values

    @model_validator(mode="before")
    @classmethod
    def _method_fits_the_precision(cls, values: Any) -> Any:
        """Set what the user leaves out to the method's default at ``engine.precision``."""
        engine = values.get("engine") if isinstance(values, dict) else None
        precision = engine.get("precision") if isinstance(engine, dict) else getattr(engine, "precision", None)
        if precision in (None, EngineConfig().precision):
            return values
        method = values.get("method") or {}
        if isinstance(method, MethodConfig):
            own = {name: getattr(method, name) for name in method.model_fields_set}
            return {**values, "method": type(method)(**{**method.defaults_at(precision), **own})}
        if not isinstance(method, Mapping):
            return values
        return {**values, "method": {**method_config(method).defaults_at(precision), **method}}

    @field_validator("method", mode="before")
    @classmethod
    def _validate_as_the_named_method(cls, value: Any) -> Any:
        return method_config(value).model_validate(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _check_sections_together(self) -> Self:
        self._check_method_against_data()
        self.method.check(self.engine, self.model.attention)
        if self.model.adapter.kind != "none" and not self.traits.adapters:
            raise ValueError("model.adapter adapts language models, and these data are images: leave it out")
        if self.model.adapter.is_quantized and self.engine.zero_stage == 3 and self.engine.backend != "torch":
            raise ValueError(
                "model.adapter.quantization '4bit' keeps the whole quantised model on every rank, and ZeRO-3 shards "
                "weights: set engine.zero_stage to 2"
            )
        self._check_sharded_settings()
        return self

    def _check_method_against_data(self) -> None:
        tasks = method_class(self.method.name, self.method.module).tasks
        if self.data.kind not in tasks:
            raise ValueError(
                f"The method '{self.method.name}' works on {' and '.join(sorted(tasks))} tasks, and data.source "
                f"'{self.data.source}' makes this a {self.data.kind} task: choose another method or source"
            )

    def _check_sharded_settings(self) -> None:
        engine = self.engine
        if engine.offload == "cpu" and (engine.backend == "torch" or engine.zero_stage == 0):
            raise ValueError(
                "engine.offload 'cpu' moves DeepSpeed's shards: use engine.backend 'deepspeed' with a zero_stage of at "
                "least 1"
            )
        if engine.precision == "bf16" and engine.backend != "torch" and engine.zero_stage == 0:
            raise ValueError(
                "engine.precision 'bf16' keeps fp32 masters in DeepSpeed's shards: use a zero_stage of at least 1, or "
                "engine.backend 'torch' in one process"
            )
        if engine.gradient_precision == "bf16":
            wanted = {"precision": "bf16", "backend": "torch", "offload": "none"}
            wrong = {name for name in wanted if getattr(engine, name) not in (wanted[name], "auto")}
            if wrong:
                changes = [f"engine.{name} to '{value}'" for name, value in wanted.items() if name in wrong]
                raise ValueError(
                    "engine.gradient_precision 'bf16' is for weights in bf16 in one process on PyTorch: set "
                    f"{listed(changes)}, or gradient_precision to 'fp32'"
                )


def read_overridden(
    source: str | Path | None, overrides: Sequence[str], unused: Collection[str] = ()
) -> dict[str, Any]:
    """Read a config with the entries of a command line set, as :func:`override` sets them.

    A preset's settings are not the user's words, so those of them that another method lacks are dropped in silence.

    Args:
        source: a YAML file, or the name of a preset. None stands for the defaults.
        overrides: entries such as ``method.inner_steps=5``.
        unused: sections that the caller does not read. They are left out.

    Raises:
        ConfigError: the file is missing, is not YAML, or an entry is wrong.
    """
    mapping = {} if source is None else read_mapping(source)
    check_sections(mapping)
    mapping = {key: value for key, value in mapping.items() if key not in unused}
    mapping = override(mapping, overrides, users_own=source is not None and not is_preset(source))
    return {key: value for key, value in mapping.items() if key not in unused}


def override(mapping: Mapping[str, Any], overrides: Sequence[str], *, users_own: bool = True) -> dict[str, Any]:
    """Return a copy of a config's mapping with ``section.key=value`` entries set.

    If an override names another method, settings that the new method does not have are dropped, and so is the search
    space of the old method.

    Args:
        mapping: the config.
        overrides: entries such as ``method.inner_steps=5``.
        users_own: whether the user wrote the config. Then one warning names what is dropped.

    Raises:
        ConfigError: an entry has no ``=``, its path runs through a value, it names an unknown method, or a section is
            no mapping.
    """
    result = deep_copy(mapping)
    check_sections(result)
    named = [entry for entry in overrides if entry.startswith(("method.name=", "method.module="))]
    if named:
        dropped = _change_method(result, apply_overrides({}, named)["method"])
        if dropped and users_own:
            warnings.warn(
                f"the config's {listed(dropped)} {'is' if len(dropped) == 1 else 'are'} left out: the method "
                f"'{result['method']['name']}' of the command line does not have "
                f"{'it' if len(dropped) == 1 else 'them'}",
                stacklevel=2,
            )
    result = apply_overrides(result, overrides)
    check_sections(result)
    return result


def check_sections(mapping: Mapping[str, Any]) -> None:
    """Check that every section of a config's mapping is a mapping. What reads a section may then rely on it.

    Raises:
        ConfigError: a section is text, a number or a list.
    """
    sections = {name for name, field in UnlearnConfig.model_fields.items() if is_section(field.annotation)}
    for name in sorted(sections | {"search", "cluster", "compare"}):
        value = mapping.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise ConfigError(
                f"The section '{name}' has the value {shortened(value)}: write settings below it, such as "
                f"'{name}: {{key: value}}'"
            )


def _change_method(mapping: dict[str, Any], named: Mapping[str, Any]) -> list[str]:
    """Name another method. Return the dotted keys of the settings that are dropped.

    Args:
        mapping: the config, which is changed.
        named: the overrides of ``name`` and ``module``. A method of the user's own is found in its module.
    """
    section = mapping.get("method") or {}
    name = named.get("name", section.get("name", "ofmu"))
    if name == section.get("name", "ofmu"):
        return []
    known = method_config({**section, **named}).model_fields
    mapping["method"] = {key: value for key, value in section.items() if key in known} | {"name": name}
    dropped = [f"method.{key}" for key in section if key not in known]
    search = mapping.get("search")
    # A space is made for one method. A part of that space would search the new method at unsuitable rates.
    if isinstance(search, dict) and search.pop("space", None):
        dropped.append("search.space")
    return dropped
