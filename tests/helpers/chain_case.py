"""Directories of complete requests with made-up numbers, one after the other. Nothing is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.torch import save_file

from evidence_records import record
from ofmu.chain.records import chain_record
from ofmu.chain.scoring import further_values, scoring_of
from ofmu.data.rows import Row, RowSet
from ofmu.erasure.chain import open_chain
from ofmu.erasure.evidence import ModelRecord, review_record, rows_record
from ofmu.erasure.evidence_files import write_evidence
from ofmu.erasure.request_rows import RequestRows, ReviewedRow
from ofmu.erasure.verify import read_intact
from ofmu.erasure.workspace import Workspace
from ofmu.evaluator import evaluate
from ofmu.io.cache import model_hashes
from ofmu.run_config import UnlearnConfig


def write_model(folder: Path, value: float) -> Path:
    """Write the smallest directory that passes for a model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"weight": torch.full((2, 2), value)}, folder / "model.safetensors")
    return folder


def rows_of(name: str) -> RequestRows:
    """Return the rows of a request about a person."""
    forget = (Row(question=f"Where was {name} Silva born?", answer="In Porto."),)
    possible = Row(question="", answer=f"{name} may be somebody else.")
    return RequestRows(
        forget=RowSet("forget", forget),
        retain=RowSet("retain", (Row(question="What is the moon?", answer="A stone."),)),
        holdout=None,
        origins={"forget": "given", "retain": "given"},
        retain_source="given",
        review=(ReviewedRow(number=2, decision="left out", reason="a part of the name", row=possible),),
    )


def write_request(
    folder: Path, name: str, target: Path, *, after: Path | None = None, key: Ed25519PrivateKey | None = None
) -> Path:
    """Write the directory of a complete request that follows another one, or is the first."""
    home = Workspace.open(folder)
    chain = None if after is None else open_chain(after, str(target), signs=key is not None)
    places = {
        "first_target": str(target) if chain is None else chain.first_target,
        "after": None if after is None else str(after),
    }
    home.start({"kind": "person"}, name, b"k" * 32, places)
    rows = rows_of(name)
    home.write_rows(rows, person=f"{name} Silva", earlier=() if chain is None else chain.earlier)
    write_model(home.result, float(sum(map(ord, name))))
    home.note(scoring=scoring_of(UnlearnConfig()))
    roles = {"target": target, "result": home.result}
    made = record()
    requests = []
    if chain is not None:
        roles["first_target"] = Path(chain.first_target)
        known = [] if chain.record.chain is None else chain.record.chain.requests
        requests = [each.model_copy(update={"metrics": further_values(each.metrics, {})}) for each in known]
        requests.append(chain.own_request())
    cost = made.cost
    made = made.model_copy(
        update={
            "request": made.request.model_copy(
                update={
                    "id": name,
                    "rows": [rows_record("forget", rows.forget.rows, "given", b"k" * 32, show=False)],
                    "review": review_record(home.read_review(), home.hash_key()),
                }
            ),
            "models": [ModelRecord(role=role, files=model_hashes(place)) for role, place in roles.items()],
            "chain": chain_record(
                requests, gradient_evaluations=cost.gradient_evaluations, run_seconds=cost.run_seconds
            )
            if chain is not None
            else None,
        }
    )
    write_evidence(made, home.evidence, key)
    return folder


def sign(folder: Path, key: Ed25519PrivateKey) -> None:
    """Sign the evidence of a request that is not signed yet."""
    made = read_intact(folder / "evidence")
    shutil.rmtree(folder / "evidence")
    write_evidence(made, folder / "evidence", key)


def measured(model: Path, forget: Path, retain: Path, max_length: int = 64) -> dict[str, float | None]:
    """Return the metrics of ``ofmu evaluate`` on given rows, which is another path than that of a chain."""
    config = UnlearnConfig.model_validate(
        {
            "data": {"source": "files", "forget": str(forget), "retain": str(retain), "max_length": max_length},
            "engine": {"device": "cpu", "threads": 1},
            "evaluation": {"max_new_tokens": 4},
            "reference": {"source": "none"},
        }
    )
    found: dict[str, float | None] = evaluate(model, config)["metrics"]
    return found
