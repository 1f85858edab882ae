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


@pytest.mark.long
@pytest.mark.ranks
def test_a_request_after_a_request_on_two_workers(ray_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each trial shards its model over two workers."""
    place = write_case(tmp_path)
    monkeypatch.chdir(place)
    rows = (place / "corpus.jsonl").read_text().splitlines(keepends=True)
    for name, chosen in (("one", rows[:4]), ("two", rows[4:8]), ("retain", rows[2:])):
        (place / f"{name}.jsonl").write_text("".join(chosen))
    (place / "retain_one.jsonl").write_text("".join(rows[8:]))
    (place / "retain_two.jsonl").write_text("".join([*rows[2:4], *rows[8:]]))
    workers = ["cluster.num_workers=2", "engine.backend=deepspeed", "engine.zero_stage=3"]
    for name, model, more in (("one", "model", []), ("two", "out_one/model", ["--after", "out_one"])):
        words = ["forget", model, "--rows", f"{name}.jsonl", "--retain", f"retain_{name}.jsonl", *more]
        words += [
            "--output",
            f"out_{name}",
            "--trials",
            "3",
            "--confirm",
            "0",
            "--min-utility",
            "0",
            "--key",
            "key.pem",
        ]
        assert main([*words, *SETTINGS, *workers]) == 0
    record = verify_evidence("out_two", public_key="public.pem", model="out_two/model").record
    assert record.search.complete == 3
    assert record.chain is not None
    (earlier,) = record.chain.requests
    assert earlier.forget_rows == 4
    assert {each.name for each in earlier.metrics} >= {"forget_probability", "extraction_strength"}
    kept = next(each for each in record.request.rows if each.role == "retain")
    assert kept.count == len(rows[8:]), "the two rows of the first request are not retained"
