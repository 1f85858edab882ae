"""Preflight check of the files that a config names. The check takes a moment and needs neither torch nor a cluster."""

from __future__ import annotations

from contextlib import suppress

from ofmu.data.entities import read_entities, rows_with_facts
from ofmu.data.load import load_data
from ofmu.data.rows import UnlearnData
from ofmu.data.tofu import HUB_NAME
from ofmu.errors import ConfigError, ModelError
from ofmu.evaluation.harness.tasks import check_tasks
from ofmu.io.files import expanded
from ofmu.methods.registry import method_class
from ofmu.models.files import check_model_directory, check_tokenizer
from ofmu.models.hub import looks_like_hub_id
from ofmu.plan.check import model_config
from ofmu.run_config import UnlearnConfig


def check_inputs(config: UnlearnConfig) -> UnlearnData | None:
    """Read the rows that lie in local files, and check that the model directories hold models.

    Data and models on the hub, the parts of WMDP, and images are checked only when a run loads them.

    Returns:
        The rows, if they lie in local files.

    Raises:
        ConfigError: a retrained model is needed, and the config names no model to start from; a package that the config
            needs, or a task of lm-eval, is missing; or a setting names a part that the model lacks.
        DataError: a file is missing or malformed, a column is missing, or the sets overlap.
        ModelError: a directory is missing, or holds no model that loads without running code and can be trained.
    """
    model, reference = config.model, config.reference
    check_retrain_has_base(config)
    model.adapter.check_packages()
    if config.traits.model_directories:
        check_tasks(config.evaluation)
    rows = local_rows(config)
    _check_entities(config, rows)
    if config.traits.model_directories:
        # An existing reference may also be a run directory or a file of scores. Only a model has config.json.
        place = expanded(reference.path or "")
        is_model = (place / "config.json").is_file() or (reference.source == "model" and not place.exists())
        for path in (model.path, model.base, reference.path if is_model else None):
            if path is not None:
                check_model_directory(path)
                check_tokenizer(path, model.tokenizer)
    check_parts_of_model(config)
    return rows


def check_retrain_has_base(config: UnlearnConfig) -> None:
    """Check that the config names the model from which the retrained model is trained, if it needs one.

    Raises:
        ConfigError: the config names the fine-tuned target and no model before it.
    """
    if config.model.is_target and config.reference.source == "retrain" and config.model.base is None:
        raise ConfigError(
            "reference.source 'retrain' trains the model before fine-tuning on the retain rows, and model.path is the "
            "fine-tuned target: set model.base to that earlier model, or reference.source to model, scores or none"
        )


def check_parts_of_model(config: UnlearnConfig) -> None:
    """Check the settings that name parts of the model, such as a layer, on the model's ``config.json``.

    A model that is not on this machine yet, and images, are not checked. The run says what is wrong with a
    ``config.json`` from which no model can be built.

    Raises:
        ConfigError: the model has no such part.
    """
    description = model_config(config) if config.data.kind == "language" else None
    if description is None:
        return
    adapter = config.model.adapter
    with suppress(ModelError):
        if adapter.kind != "none" and adapter.target_modules != "all_linear":
            # Transformers takes seconds to import.
            from ofmu.models.meta import trained_shapes

            trained_shapes(description, adapter)
        method_class(config.method.name, config.method.module).check_model(config.method, description, adapter)


def local_rows(config: UnlearnConfig) -> UnlearnData | None:
    """Return the rows if they lie in local files, else None.

    Raises:
        DataError: a file is missing or malformed, a column is missing, or the sets overlap.
    """
    data = config.data
    if data.source == "files" or (data.source == "tofu" and not looks_like_hub_id(data.path or HUB_NAME)):
        return load_data(data, config.seed)
    return None


def _check_entities(config: UnlearnConfig, rows: UnlearnData | None) -> None:
    """Check the file of entities. ``rows``: the data, if they lie in local files."""
    path = config.evaluation.entities
    if path is None or not config.evaluation.depth:
        return
    if rows is None:
        read_entities(path)
    else:
        rows_with_facts(rows, path)
