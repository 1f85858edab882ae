"""The record of an erasure, ``evidence.json``. ``python -m ofmu.erasure.evidence`` prints its JSON schema.

Texts of rows and names of people are in the record only if the user asked for them. A plain hash of a short text can be
guessed, so rows and names are hashed under a random key (HMAC-SHA256) that stays with the user.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import Field, JsonValue

from ofmu.chain.records import ChainRecord
from ofmu.config.base import Section
from ofmu.data.records import filled_fields
from ofmu.data.rows import Row

FORMAT: Final = "ofmu-evidence/1"

ModelRole = Literal["target", "result", "base", "retrained", "first_target"]


class RowsRecord(Section):
    """A set of rows."""

    role: Literal["forget", "retain", "holdout"]
    count: int
    origin: str
    """How the set was made."""
    hash: str
    """HMAC-SHA256 (hex) of ``row_hashes`` in order, joined by line feeds."""
    row_hashes: list[str]
    """HMAC-SHA256 (hex) of each row as JSON with sorted keys and without white space between tokens."""
    texts: list[dict[str, JsonValue]] | None = None
    """The rows. None unless the user asked for them."""


class ReviewRecord(Section):
    """The rows of the corpus that somebody should look at, in ``rows/review.jsonl`` of the request's directory."""

    count: int
    hash: str
    """HMAC-SHA256 (hex) of the file's text."""


class RequestRecord(Section):
    """The request."""

    id: str
    kind: Literal["rows", "person", "questions"]
    received: str
    """When ``ofmu forget`` was first given the request, in ISO format."""
    person_hash: str | None = None
    """HMAC-SHA256 (hex) of the person's name; None if the request names no person."""
    person: str | None = None
    """The name. None unless the user asked for it."""
    rows: list[RowsRecord]
    review: ReviewRecord | None = None
    """The decisions about single rows of the corpus. None in the evidence of older versions."""
    notes: list[str]
    """What a reader should know about the rows."""


class ModelRecord(Section):
    """One model."""

    role: ModelRole
    """``target``: the model that had to forget. ``result``: the model after unlearning. ``base``: the model before
    training on the rows. ``retrained``: ``base`` trained without the forget rows. ``first_target``: the target of the
    first request of a chain."""
    files: dict[str, str]
    """SHA-256 (hex) by file: weights, configs and tokenizer."""


class MethodRecord(Section):
    """How the result was made."""

    name: str
    title: str
    settings: dict[str, JsonValue]
    learning_rates: dict[str, float] = Field(default_factory=dict)
    """The rates that the settings leave open, from range tests and scales. Empty in the evidence of older versions."""
    config_hash: str
    """SHA-256 (hex) of the whole config of the run as JSON with sorted keys. Paths are part of it."""


class CandidateRecord(Section):
    """A trial that could have been chosen."""

    trial: int
    forgetting: float
    """The first objective: the mean over the further seeds, or the value on the search's seed without such runs."""
    utility: float
    """The second objective, likewise."""
    runs: int
    """Number of runs on further seeds."""
    meets_constraint: bool


class SearchRecord(Section):
    """The search, and how the result was picked from it."""

    complete: int
    failed: int
    pruned: int
    seconds: float
    """Seconds on the clock, in which trials may run side by side: those of the search in ``cost.seconds``."""
    objectives: dict[str, Literal["min", "max"]]
    rule: str
    """The rule of the choice, in words."""
    min_utility: float
    """The bound of the rule, in the unit of the second objective. In a chain it is a share of the first target's."""
    candidates: list[CandidateRecord]
    """The trials among which the rule chose, the best first."""
    chosen_trial: int


class MetricRecord(Section):
    """One metric."""

    name: str
    better: str
    """Which values are better, in words."""
    meaning: str
    target: float | None = None
    """The value of the model before unlearning."""
    result: float | None = None
    """The value of the model after unlearning."""
    retrained: float | None = None
    """The value of the retrained model. None if there is none."""
    first_target: float | None = None
    """The value of the first target of a chain, on the rows of the present request. None for a first request."""
    mean: float | None = None
    """Mean over runs of the same setting on further seeds. None without such runs."""
    low: float | None = None
    """Lower end of the 95 % interval of the mean by Student's t; None with fewer than two runs."""
    high: float | None = None
    """Upper end of that interval."""
    runs: int = 0
    """Number of runs on further seeds that have the metric."""


class AttackRecord(Section):
    """One attack on the models."""

    name: str
    description: str
    metrics: list[MetricRecord]


class NotRunRecord(Section):
    """An attack or a comparison that was not made."""

    name: str
    reason: str


class CostRecord(Section):
    """What the request cost."""

    gradient_evaluations: float
    """Minibatch gradients of all runs: the search and the runs on further seeds."""
    run_seconds: float
    """Seconds of all these runs, added up although they may run side by side."""
    seconds: dict[str, float]
    """Seconds on the clock by step, over all attempts."""


class CodeRecord(Section):
    """The software."""

    version: str
    hash: str
    """SHA-256 (hex) over the source files of the packages ofmu, tune and cluster."""
    python: str
    versions: dict[str, str]
    """Versions of packages."""


class SignatureRecord(Section):
    """The key that signed the record. The signature of the bytes of evidence.json is in ``evidence.sig``."""

    algorithm: Literal["Ed25519"] = "Ed25519"
    public_key_sha256: str
    """SHA-256 (hex) of the public key in DER. The key itself is in ``public_key.pem``."""


class Evidence(Section):
    """What ``evidence.json`` holds."""

    format: Literal["ofmu-evidence/1"] = FORMAT
    request: RequestRecord
    operator: str
    """Who ran the request."""
    host: str
    finished: str
    """When the measurements were complete, in ISO format."""
    models: list[ModelRecord]
    method: MethodRecord
    search: SearchRecord
    reference: str
    """What the result is compared with, in words."""
    metrics: list[MetricRecord]
    attacks: list[AttackRecord]
    not_run: list[NotRunRecord]
    cost: CostRecord
    code: CodeRecord
    limits: list[str]
    """What the record does not show, in words."""
    chain: ChainRecord | None = None
    """The requests before this one. None for a first request."""
    files: dict[str, str]
    """SHA-256 (hex) of the other files of the directory."""
    signature: SignatureRecord | None = None
    """None: the record is not signed."""


def keyed_hash(key: bytes, text: str) -> str:
    """Return the HMAC-SHA256 (hex) of a text."""
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def json_hash(value: object) -> str:
    """Return the SHA-256 (hex) of a JSON value with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def evidence_hash(content: bytes) -> str:
    """Return the hash by which a later request names an ``evidence.json``.

    ``files`` and ``signature`` are left out, so the hash stays the same if the evidence is signed later.

    Args:
        content: the bytes of the file, whose format was checked.
    """
    stored = json.loads(content)
    return json_hash({key: value for key, value in stored.items() if key not in ("files", "signature")})


def files_of(record: Evidence, role: ModelRole) -> Mapping[str, str]:
    """Return the hashes of a model's files by name; empty if the record has no such model."""
    return next((each.files for each in record.models if each.role == role), {})


def differing_files(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Return the names of the expected files that are missing or have another hash."""
    return sorted(name for name, value in expected.items() if found.get(name) != value)


def row_text(row: Row) -> str:
    """Return the text of a row that is hashed: its fields as JSON with sorted keys, without empty fields."""
    return json.dumps(filled_fields(row), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def rows_record(
    role: Literal["forget", "retain", "holdout"], rows: Sequence[Row], origin: str, key: bytes, *, show: bool
) -> RowsRecord:
    """Return the record of a set of rows.

    Args:
        role: the set.
        rows: its rows.
        origin: how the set was made.
        key: the key of the hashes.
        show: whether the record holds the texts.
    """
    hashes = [keyed_hash(key, row_text(row)) for row in rows]
    texts = [json.loads(row_text(row)) for row in rows] if show else None
    return RowsRecord(
        role=role,
        count=len(rows),
        origin=origin,
        hash=keyed_hash(key, "\n".join(hashes)),
        row_hashes=hashes,
        texts=texts,
    )


def review_record(text: str, key: bytes) -> ReviewRecord:
    """Return the record of a file of rows to review, from its text and the key of the hashes."""
    return ReviewRecord(count=text.count("\n"), hash=keyed_hash(key, text))


def schema() -> Mapping[str, Any]:
    """Return the JSON schema of ``evidence.json``."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Evidence.model_json_schema()}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2, ensure_ascii=False))
