"""Trials as rows of Optuna's tables in SQLite, written whole.

Optuna's own storage asks for the trial, the study and an earlier distribution before each parameter and attribute that
it writes: some 60 statements per trial. A sole writer knows all that already.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

Change = tuple[FrozenTrial | None, FrozenTrial]
"""A trial as the file has it, None where it does not, and as it is to be."""


def write_changes(file: RDBStorage, study_id: int, changes: Iterable[Change]) -> None:
    """Bring the file up to date with all changes, or with none of them.

    Raises:
        StorageInternalError: the file refuses them, or another program has written to it.
    """
    try:
        with Session(file.engine) as session, session.begin():
            for old, new in changes:
                _write_trial(session, file, study_id, old, new)
                _write_parts(session, old, new)
    except IntegrityError as error:
        raise optuna.exceptions.StorageInternalError(
            f"another program has added trials to {file.url} while a search was writing it"
        ) from error
    except SQLAlchemyError as error:
        raise optuna.exceptions.StorageInternalError(f"the study cannot be written: {error}") from error


def _write_trial(session: Session, file: RDBStorage, study_id: int, old: FrozenTrial | None, new: FrozenTrial) -> None:
    if old is None:
        row = models.TrialModel(trial_id=new._trial_id, number=new.number, study_id=study_id)
        session.add(row)
    else:
        row = session.get(models.TrialModel, new._trial_id)
        if row is None or row.state is not old.state:
            raise optuna.exceptions.StorageInternalError(f"{file.url} has another state than its search")
    row.state, row.datetime_start, row.datetime_complete = new.state, new.datetime_start, new.datetime_complete
    session.flush()


def _write_parts(session: Session, old: FrozenTrial | None, new: FrozenTrial) -> None:
    rows: dict[Any, list[dict[str, Any]]] = {
        models.TrialParamModel: [
            {
                "param_name": name,
                "param_value": new.distributions[name].to_internal_repr(value),
                "distribution_json": distribution_to_json(new.distributions[name]),
            }
            for name, value in _changed(new.params, old and old.params).items()
        ],
        models.TrialValueModel: [
            {"objective": objective, **_encoded("value", models.TrialValueModel.value_to_stored_repr(value))}
            for objective, value in enumerate((new.values or []) if old is None or old.values is None else [])
        ],
        models.TrialIntermediateValueModel: [
            {"step": step, **_encoded("intermediate_value", _INTERMEDIATE(value))}
            for step, value in _changed(new.intermediate_values, old and old.intermediate_values).items()
        ],
        models.TrialUserAttributeModel: _attributes(new.user_attrs, old and old.user_attrs),
        models.TrialSystemAttributeModel: _attributes(new.system_attrs, old and old.system_attrs),
    }
    for model, lines in rows.items():
        if lines:
            session.execute(_UPSERTS[model], [{"trial_id": new._trial_id, **line} for line in lines])


def _changed(new: Mapping[Any, Any], old: Mapping[Any, Any] | None) -> dict[Any, Any]:
    """Return the entries that the file does not have; what is changed is a new object, so no deep comparison."""
    return {key: value for key, value in new.items() if old is None or key not in old or old[key] is not value}


def _attributes(new: Mapping[str, Any], old: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    return [{"key": key, "value_json": json.dumps(value)} for key, value in _changed(new, old).items()]


def _encoded(column: str, stored: tuple[float | None, Any]) -> dict[str, Any]:
    return {column: stored[0], f"{column}_type": stored[1]}


def _upsert(model: Any, key: str, *columns: str) -> Any:
    statement = insert(model)
    return statement.on_conflict_do_update(
        index_elements=["trial_id", key], set_={column: statement.excluded[column] for column in columns}
    )


_INTERMEDIATE = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr
_UPSERTS = {
    models.TrialParamModel: _upsert(models.TrialParamModel, "param_name", "param_value", "distribution_json"),
    models.TrialValueModel: _upsert(models.TrialValueModel, "objective", "value", "value_type"),
    models.TrialIntermediateValueModel: _upsert(
        models.TrialIntermediateValueModel, "step", "intermediate_value", "intermediate_value_type"
    ),
    models.TrialUserAttributeModel: _upsert(models.TrialUserAttributeModel, "key", "value_json"),
    models.TrialSystemAttributeModel: _upsert(models.TrialSystemAttributeModel, "key", "value_json"),
}
