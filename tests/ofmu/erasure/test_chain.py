"""A request after another one: what is taken from the earlier directory, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain_case import sign, write_model, write_request
from ofmu.erasure.chain import open_chain
from ofmu.erasure.links import check_links
from ofmu.erasure.page import evidence_page
from ofmu.erasure.verify import read_intact, verify_evidence
from ofmu.errors import OfmuError

pytestmark = pytest.mark.usefixtures("without_pdf")

KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Three signed requests, each after the one before."""
    target = write_model(tmp_path / "target", 1.0)
    one = write_request(tmp_path / "one", "Ana", target, key=KEY)
    two = write_request(tmp_path / "two", "Bea", one / "model", after=one, key=KEY)
    write_request(tmp_path / "three", "Cleo", two / "model", after=two, key=KEY)
    return tmp_path


def test_all_earlier_rows_are_known_and_the_first_target_stays_the_first(chain: Path):
    opened = open_chain(chain / "three", str(chain / "three" / "model"), signs=True)
    assert [each.id for each in opened.earlier] == ["Ana", "Bea", "Cleo"]
    assert [each.forget[0].question for each in opened.earlier] == [
        f"Where was {name} Silva born?" for name in ("Ana", "Bea", "Cleo")
    ]
    assert [each.person for each in opened.earlier] == ["Ana Silva", "Bea Silva", "Cleo Silva"]
    assert [each.left_out[0].answer for each in opened.earlier][1] == "Bea may be somebody else."
    assert opened.first_target == str(chain / "target")
    assert opened.check_first_target() == chain / "target"
    assert opened.own_request().id == "Cleo"
    # The evidence names the persons of earlier requests as little as its own.
    for name in ("one", "two", "three"):
        for path in (chain / name / "evidence").glob("*.[jh]*"):
            assert "Silva born" not in path.read_text()


def test_the_links_of_a_chain_are_checked_where_they_lie(chain: Path):
    record = verify_evidence(chain / "three").record
    assert check_links(record, chain / "three" / "evidence").checked == ("Ana", "Bea")
    # A copy of the evidence alone does not say where the earlier evidence is.
    shutil.copytree(chain / "three" / "evidence", chain / "copy")
    assert check_links(record, chain / "copy").unchecked == ("Ana", "Bea")
    found = check_links(record, chain / "copy", [chain / "one"])
    assert (found.checked, found.unchecked) == (("Ana",), ("Bea",))
    first = verify_evidence(chain / "one").record
    assert check_links(first, chain / "one" / "evidence").checked == ()


@pytest.mark.slow
def test_evidence_that_is_signed_later_is_the_same_link(tmp_path: Path):
    target = write_model(tmp_path / "target", 1.0)
    one = write_request(tmp_path / "one", "Ana", target)
    two = write_request(tmp_path / "two", "Bea", one / "model", after=one)
    for folder in (one, two):
        sign(folder, KEY)
    assert check_links(verify_evidence(two).record, two / "evidence").checked == ("Ana",)


def altered(place: Path) -> None:
    file = place / "one" / "evidence" / "evidence.json"
    file.write_text(file.read_text().replace('"result": 0.1', '"result": 0.0'))


def other_request(place: Path) -> None:
    """Somebody puts other evidence, signed by the same key, in the place of the first."""
    shutil.rmtree(place / "one")
    write_request(place / "one", "Eve", place / "target", key=KEY)


def without_signature(place: Path) -> None:
    evidence = place / "one" / "evidence"
    file = evidence / "evidence.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"signature": None}))
    (evidence / "evidence.sig").unlink()
    (evidence / "public_key.pem").unlink()


def another_signer(place: Path) -> None:
    without_signature(place)
    sign(place / "one", Ed25519PrivateKey.generate())


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (altered, r"signature does not fit: .*evidence\.json or evidence\.sig was changed"),
        (other_request, "is not the evidence of an earlier request that .* names"),
        (without_signature, "is not signed, and the next request followed evidence that was signed"),
        (another_signer, "is signed with the key with SHA-256 .*, and the next request followed"),
    ],
)
def test_a_broken_link_is_refused(chain: Path, harm: Callable[[Path], None], sentence: str):
    harm(chain)
    record = verify_evidence(chain / "three").record
    with pytest.raises(OfmuError, match=sentence):
        check_links(record, chain / "three" / "evidence")


def test_a_request_from_another_model_does_not_continue_the_chain(chain: Path):
    record = verify_evidence(chain / "three").record
    models = [
        each.model_copy(update={"files": {"model.safetensors": "0" * 64}}) if each.role == "target" else each
        for each in record.models
    ]
    with pytest.raises(OfmuError, match="'Cleo' did not start from the model that the request 'Bea' left"):
        check_links(record.model_copy(update={"models": models}), chain / "three" / "evidence")
    assert record.chain is not None
    shorter = record.chain.model_copy(update={"requests": record.chain.requests[1:]})
    with pytest.raises(OfmuError, match="'Bea' names other earlier requests than"):
        check_links(record.model_copy(update={"chain": shorter}), chain / "copy", [chain / "two"])


def no_evidence(place: Path) -> None:
    shutil.rmtree(place / "three" / "evidence")


def foreign(place: Path) -> None:
    shutil.rmtree(place / "three")
    (place / "three" / "model").mkdir(parents=True)


def a_run(place: Path) -> None:
    foreign(place)
    environment = {"python": "", "platform": "", "host": "", "versions": {}}
    (place / "three" / "environment.json").write_text(json.dumps(environment))


def damaged(place: Path) -> None:
    (place / "three" / "request.json").write_text("{")


def other_evidence(place: Path) -> None:
    shutil.rmtree(place / "three" / "evidence")
    shutil.copytree(place / "two" / "evidence", place / "three" / "evidence")


def edited_rows(place: Path) -> None:
    """The rows and their hash beside them fit each other, but are not those of the evidence."""
    shutil.rmtree(place / "three" / "rows")
    shutil.copytree(place / "two" / "rows", place / "three" / "rows")


def edited_earlier_rows(place: Path) -> None:
    file = place / "three" / "rows" / "earlier" / "1_forget.jsonl"
    file.write_text(file.read_text().replace("Porto", "Ulm"))


def no_rows(place: Path) -> None:
    shutil.rmtree(place / "three" / "rows")


def linked(place: Path) -> None:
    (place / "three" / "rows").rename(place / "elsewhere")
    (place / "three" / "rows").symlink_to(place / "elsewhere")


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (lambda place: shutil.rmtree(place / "three"), "There is no directory .*three"),
        (no_evidence, "is not complete, since it has no evidence yet"),
        (foreign, r"three is no directory of ofmu forget: name"),
        (a_run, r"three is no directory of ofmu forget \(after a run, use ofmu unlearn --after\)"),
        (damaged, "request.json is damaged"),
        (other_evidence, "is that of the request 'Bea', and .* holds another one"),
        (edited_rows, "holds other rows than the evidence"),
        (edited_earlier_rows, "1_forget.jsonl was changed after it was written"),
        (no_rows, "rows is gone, so the rows that must stay forgotten are unknown"),
        (linked, "rows is a link"),
        (lambda place: (place / "three" / "evidence" / "report.html").write_text("x"), "report.html was altered"),
        (
            lambda place: (place / "three" / "evidence" / "evidence.sig").write_bytes(b"0" * 64),
            "signature does not fit",
        ),
    ],
)
def test_a_damaged_or_foreign_directory_is_refused(chain: Path, harm: Callable[[Path], None], sentence: str):
    model = write_model(chain / "unused", 0.0) if not (chain / "three").is_dir() else chain / "three" / "model"
    shutil.copytree(model, chain / "model")
    harm(chain)
    with pytest.raises(OfmuError, match=sentence) as caught:
        open_chain(chain / "three", str(chain / "model"), signs=False)
    assert "\n" not in str(caught.value)


def test_another_model_than_the_result_is_refused(chain: Path):
    with pytest.raises(OfmuError, match=r"is not the model that the request in .*three left, since model.safetensors"):
        open_chain(chain / "three", str(chain / "two" / "model"), signs=False)


def test_signed_evidence_does_not_follow_unsigned(tmp_path: Path):
    one = write_request(tmp_path / "one", "Ana", write_model(tmp_path / "target", 1.0))
    open_chain(one, str(one / "model"), signs=False)
    with pytest.raises(OfmuError, match="is not signed, and signed evidence cannot follow it: sign it first"):
        open_chain(one, str(one / "model"), signs=True)


def test_a_first_target_that_is_gone_or_changed_is_named(chain: Path):
    opened = open_chain(chain / "three", str(chain / "three" / "model"), signs=True)
    (chain / "target" / "model.safetensors").write_bytes((chain / "two" / "model" / "model.safetensors").read_bytes())
    with pytest.raises(OfmuError, match=r"model.safetensors of .*target changed since its request"):
        opened.check_first_target()
    shutil.rmtree(chain / "target")
    with pytest.raises(OfmuError, match="holds no model any more"):
        opened.check_first_target()


def test_the_page_shows_each_earlier_request_and_the_cost_of_all(chain: Path):
    page = evidence_page(read_intact(chain / "three" / "evidence"))
    assert "Earlier requests" in page
    assert "Cost of each request, and of all" in page
    assert "3,702" in page  # three times 1,234 gradients
    assert "Earlier requests" not in evidence_page(read_intact(chain / "one" / "evidence"))
