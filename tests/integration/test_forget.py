"""A whole erasure request on Ray, as small as it gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from erasure_case import SETTINGS, person_of, write_case
from ofmu.cli.main import main
from ofmu.erasure.verify import verify_evidence

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_a_request_becomes_signed_evidence_on_ray(ray_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = write_case(tmp_path)
    monkeypatch.chdir(place)
    words = ["forget", "model", "--person", person_of(place), "--corpus", "corpus.jsonl", "--output", "request"]
    words += ["--trials", "3", "--confirm", "1", "--min-utility", "0", "--key", "key.pem", *SETTINGS]
    assert main(words) == 0
    record = verify_evidence("request", public_key="public.pem", model="request/model").record
    assert record.search.complete == 3
    assert record.search.candidates[0].runs == 1
    assert all(metric.retrained is None for metric in record.metrics)
    assert {attack.name for attack in record.attacks} >= {"relearning", "quantization_8", "quantization_4"}
