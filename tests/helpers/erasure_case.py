"""The smallest erasure request: a tiny model with its base, a corpus, holdout rows and a key."""

from __future__ import annotations

import itertools
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ofmu.data.load import load_data
from ofmu.data.records import record_of
from ofmu.erasure import evidence_files
from ofmu.erasure.signature import public_pem
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig
from ofmu.trainer import unlearn
from tune.execution.trial_records import TrialOutcome

SETTINGS = (
    "data.max_length=64",
    "engine.device=cpu",
    "engine.threads=1",
    "evaluation.max_new_tokens=4",
    "training.epochs=1",
    "method.name=graddiff",
    "method.batch_size=2",
    "search.max_concurrent_trials=1",
    "search.sampler=random",
    "search.objectives={forget_probability: min, model_utility: max}",
    "search.space={method.lr: {low: 0.003, high: 0.03, log: true}, method.steps: 2}",
)
"""Settings with which a request takes seconds, as words of a command line."""
_MODEL: dict[str, Any] = {
    "model": {
        "scratch": {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 320}
    },
    "data": {"generated": {"authors": 4, "forget_authors": 1, "world_facts": 2}, "max_length": 64},
    "engine": {"device": "cpu", "threads": 1},
    "evaluation": {"max_new_tokens": 4},
    "training": {"epochs": 3},
    "reference": {"source": "none"},
}


def write_case(folder: Path) -> Path:
    """Write ``model``, ``base``, ``corpus.jsonl``, ``rows.jsonl``, ``holdout.jsonl``, ``key.pem`` and ``public.pem``.

    The rows are those of one author of the corpus.
    """
    config = UnlearnConfig.model_validate(_MODEL)
    prepared = prepare(config)
    assert prepared.base is not None
    for name, source in (("model", prepared.target), ("base", prepared.base)):
        shutil.copytree(source, folder / name)
    data = load_data(config.data, config.seed)
    assert data.holdout is not None
    rows = {"corpus": (*data.forget.rows, *data.retain.rows), "holdout": data.holdout.rows, "rows": data.forget.rows}
    for name, found in rows.items():
        lines = (json.dumps(record_of(row), ensure_ascii=False) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    key = Ed25519PrivateKey.generate()
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "public.pem").write_bytes(public_pem(key))
    return folder


def person_of(folder: Path) -> str:
    """Return the name in the first question: Where was NAME born?"""
    first = json.loads((folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return str(first["question"]).removeprefix("Where was ").removesuffix(" born?")


def trials_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run trials here: Ray takes most of the seconds of a tiny search. tests/integration has a request on Ray."""
    for name in ("tune.search", "tune.confirmation.runs"):
        monkeypatch.setattr(f"{name}.max_parallel_trials", lambda cluster, limit: 1)
        monkeypatch.setattr(f"{name}.run_trials", _run_here)
    monkeypatch.setattr("tune.search.ray_session", lambda cluster, *arguments: nullcontext(cluster))
    monkeypatch.setattr(evidence_files, "print_to_pdf", lambda page, target: False)


def _run_here(source: Any, config: Any, *, prepared: Any, on_trial_start: Any, **_: Any) -> None:
    for key in map(str, itertools.count()):
        spec = source.next_trial(key)
        if spec is None:
            return
        on_trial_start()
        result = unlearn(spec.run, spec.trial_dir, prepared=prepared)
        source.complete(key, TrialOutcome(metrics=result.metrics))
