from __future__ import annotations

import hmac
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain_case import write_model, write_request
from evidence_records import FORGET, PERSON, record
from ofmu.cli.main import main
from ofmu.erasure import evidence_files
from ofmu.erasure.chain import open_chain
from ofmu.erasure.evidence_files import write_evidence
from ofmu.erasure.signature import fingerprint, public_pem
from ofmu.erasure.verify import read_intact, verify_evidence
from ofmu.errors import EvidenceError, RunError, StorageError
from ofmu.io.files import file_hash

pytestmark = pytest.mark.usefixtures("without_pdf")

KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    write_evidence(record(), tmp_path / "evidence", KEY)
    return tmp_path / "evidence"


def write_public(path: Path, key: Ed25519PrivateKey) -> Path:
    path.write_bytes(public_pem(key))
    return path


def test_evidence_is_as_it_was_signed(signed: Path, tmp_path: Path):
    found = verify_evidence(signed)
    assert found.signer == fingerprint(KEY.public_key())
    assert not found.is_known_signer
    assert found.record == read_intact(signed)
    assert found.record.request == record().request
    assert verify_evidence(signed, public_key=write_public(tmp_path / "pub.pem", KEY)).is_known_signer
    # The directory of the whole request will do, and a moved copy as well.
    assert verify_evidence(tmp_path).directory == signed
    shutil.copytree(signed, tmp_path / "copy" / "elsewhere")
    assert verify_evidence(tmp_path / "copy" / "elsewhere").record == found.record


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on this machine")
def test_openssl_accepts_the_signature(signed: Path):
    words = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        "public_key.pem",
        "-rawin",
        "-in",
        "evidence.json",
        "-sigfile",
        "evidence.sig",
    ]
    assert b"Successfully" in subprocess.run(words, cwd=signed, check=True, capture_output=True).stdout


def flip(path: Path, place: int = 20) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def better_number(place: Path) -> None:
    file = place / "evidence.json"
    file.write_text(file.read_text().replace('"result": 0.1', '"result": 0.0'))


def signed_by_nobody(place: Path) -> None:
    content = json.loads((place / "evidence.json").read_text()) | {"signature": None}
    (place / "evidence.json").write_text(json.dumps(content))
    (place / "evidence.sig").unlink()
    (place / "public_key.pem").unlink()


def with_own_key(place: Path) -> None:
    """What a forger does who has no key of the author."""
    forger = Ed25519PrivateKey.generate()
    content = json.loads((place / "evidence.json").read_text())
    content["signature"]["public_key_sha256"] = fingerprint(forger.public_key())
    data = json.dumps(content).encode()
    (place / "evidence.json").write_bytes(data)
    (place / "evidence.sig").write_bytes(forger.sign(data))
    (place / "public_key.pem").write_bytes(public_pem(forger))


def renamed_key(place: Path) -> None:
    text = (place / "evidence.json").read_text()
    (place / "evidence.json").write_text(text.replace("gradient_evaluations", "gradients", 1))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (better_number, r"signature does not fit: .*evidence\.json or evidence\.sig was changed"),
        (lambda place: flip(place / "evidence.sig"), "signature does not fit"),
        (lambda place: flip(place / "report.html", 3000), "report.html was altered"),
        (lambda place: (place / "report.html").unlink(), "report.html is missing"),
        (lambda place: (place / "evidence.sig").unlink(), "evidence.sig is missing"),
        (lambda place: (place / "evidence.json").unlink(), "holds no evidence.json"),
        (lambda place: (place / "evidence.json").write_text("{}"), "signature does not fit"),
        (lambda place: (place / "evidence.json").write_bytes(b"\xff"), "signature does not fit"),
        (renamed_key, r"signature does not fit: .*evidence\.json or evidence\.sig was changed after it was signed"),
        (lambda place: (place / "public_key.pem").write_text("x"), "public_key.pem was altered"),
        (
            lambda place: write_public(place / "public_key.pem", Ed25519PrivateKey.generate()),
            "is not the key that evidence.json states",
        ),
        (lambda place: (place / "more.pdf").write_text("x"), "more.pdf is not listed in evidence.json"),
        (signed_by_nobody, "is not signed, so anybody may have changed it"),
        (with_own_key, "signed with another key"),
    ],
)
def test_changed_evidence_is_refused(signed: Path, tmp_path: Path, harm: Callable[[Path], None], sentence: str):
    harm(signed)
    with pytest.raises(EvidenceError, match=sentence):
        verify_evidence(signed, public_key=write_public(tmp_path / "pub.pem", KEY))


@pytest.mark.parametrize("content", [b"{}", b"\xff"])
@pytest.mark.parametrize("is_signed", [True, False])
def test_another_format_is_said_where_the_signature_fits_or_is_missing(signed: Path, content: bytes, is_signed: bool):
    (signed / "evidence.json").write_bytes(content)
    if is_signed:
        (signed / "evidence.sig").write_bytes(KEY.sign(content))
    else:
        (signed / "evidence.sig").unlink()
    with pytest.raises(EvidenceError, match="no record of the format ofmu-evidence/1"):
        verify_evidence(signed)


def test_a_link_is_no_part_of_evidence(signed: Path, tmp_path: Path):
    (signed / "report.html").rename(tmp_path / "report.html")
    (signed / "report.html").symlink_to(tmp_path / "report.html")
    with pytest.raises(EvidenceError, match=r"report\.html is missing"):
        verify_evidence(signed)
    (signed / "evidence.sig").rename(tmp_path / "evidence.sig")
    (signed / "evidence.sig").symlink_to(tmp_path / "evidence.sig")
    with pytest.raises(EvidenceError, match=r"evidence\.sig is a link"):
        verify_evidence(signed)


def test_a_listed_path_leads_nowhere_else(signed: Path, tmp_path: Path):
    """A record of somebody else must not make us read a file outside of its directory."""
    (tmp_path / "outside").write_text("x")
    content = json.loads((signed / "evidence.json").read_text())
    content["files"]["../outside"] = "0" * 64
    data = json.dumps(content).encode()
    (signed / "evidence.json").write_bytes(data)
    (signed / "evidence.sig").write_bytes(KEY.sign(data))
    with pytest.raises(EvidenceError, match=r"lists the file '\.\./outside'"):
        verify_evidence(signed)


def test_unsigned_evidence_is_intact_but_is_not_verified(tmp_path: Path):
    write_evidence(record(), tmp_path / "evidence", None)
    assert read_intact(tmp_path / "evidence").signature is None
    with pytest.raises(EvidenceError, match="is not signed"):
        verify_evidence(tmp_path / "evidence")
    flip(tmp_path / "evidence" / "report.html", 3000)
    with pytest.raises(EvidenceError, match=r"report\.html was altered"):
        verify_evidence(tmp_path / "evidence")


def test_the_model_of_the_evidence_is_compared(tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    models = [
        record().models[1].model_copy(update={"files": {"model.safetensors": file_hash(model / "model.safetensors")}})
    ]
    write_evidence(record().model_copy(update={"models": models}), tmp_path / "evidence", KEY)
    verify_evidence(tmp_path / "evidence", model=model)
    (model / "model.safetensors").write_bytes(b"others")
    with pytest.raises(
        EvidenceError, match=r"is not the model of the evidence, since its model\.safetensors has other content"
    ):
        verify_evidence(tmp_path / "evidence", model=model)
    with pytest.raises(EvidenceError, match="There is no model directory"):
        verify_evidence(tmp_path / "evidence", model=tmp_path / "nothing")


@pytest.mark.parametrize("show", [False, True])
def test_texts_and_names_are_in_the_evidence_only_if_asked_for(tmp_path: Path, show: bool):
    write_evidence(record(show_rows=show), tmp_path / "evidence", KEY)
    for name in ("evidence.json", "report.html"):
        text = (tmp_path / "evidence" / name).read_text()
        assert (PERSON in text) is show, name
        assert ("Porto" in text) is show, name
        assert "Bob Meyer" not in text
    assert "<b>Porto</b>" not in (tmp_path / "evidence" / "report.html").read_text()


def test_evidence_claims_nothing_that_it_cannot_know(tmp_path: Path):
    write_evidence(record(), tmp_path / "evidence", None)
    for path in (tmp_path / "evidence").iterdir():
        text = path.read_text().lower()
        assert "certif" not in text
        assert "guarant" not in text


def test_files_of_the_user_are_not_replaced(tmp_path: Path):
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="already holds files"):
        write_evidence(record(), tmp_path / "evidence", KEY)
    assert [path.name for path in (tmp_path / "evidence").iterdir()] == ["mine.txt"]


def test_a_browser_that_fails_costs_the_pdf_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(page: Path, target: Path) -> bool:
        raise StorageError("the browser made nothing: check it")

    monkeypatch.setattr(evidence_files, "print_to_pdf", fail)
    with pytest.warns(UserWarning, match=r"the evidence has no report\.pdf"):
        write_evidence(record(), tmp_path / "evidence", KEY)
    assert sorted(verify_evidence(tmp_path / "evidence").record.files) == ["report.html"]


def test_the_files_of_evidence_are_readable_by_others(signed: Path):
    """An auditor is another user."""
    mask = os.umask(0)
    os.umask(mask)
    assert all(path.stat().st_mode & 0o444 == 0o444 & ~mask for path in signed.iterdir())
    assert FORGET[0].answer not in (signed / "report.html").read_text()


def test_the_rows_to_review_are_those_of_the_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    request = write_request(tmp_path / "one", "Ann", write_model(tmp_path / "target", 1.0), key=KEY)
    review = request / "rows" / "review.jsonl"
    made = read_intact(request / "evidence")
    key = bytes.fromhex(json.loads((request / "request.json").read_text())["hash_key"])
    assert made.request.review is not None
    assert made.request.review.count == 1
    assert made.request.review.hash == hmac.new(key, review.read_bytes(), "sha256").hexdigest()
    assert verify_evidence(request).review == review
    assert main(["verify", str(request)]) == 0
    said = capsys.readouterr().out
    assert f"{review} is the file that was reviewed" in said
    # Every file of the evidence is named.
    assert "evidence.json and report.html are as they were signed, by the key with SHA-256" in said
    assert "evidence.sig is that signature, and public_key.pem is that key" in said
    assert all(path.name in said for path in (request / "evidence").iterdir())
    # Whoever gets the evidence alone has no rows to compare, and neither has the user after deleting them.
    shutil.copytree(request / "evidence", tmp_path / "copy" / "evidence")
    assert verify_evidence(tmp_path / "copy" / "evidence").review is None

    whole = review.read_text()
    for altered in (whole.replace("left out", "retained"), whole + whole, "", whole.replace("Ann", "Eva")):
        assert altered != whole
        review.write_text(altered)
        for place in (request, request / "evidence"):
            with pytest.raises(EvidenceError, match=r"review\.jsonl was altered, since its hash is not the one in"):
                verify_evidence(place)
        assert main(["verify", str(request)]) == 1
        assert "Traceback" not in capsys.readouterr().err
        with pytest.raises(RunError, match=r"review\.jsonl was changed after it was written: restore it from a copy"):
            open_chain(request, str(request / "model"), signs=True)
    review.write_text(whole)
    open_chain(request, str(request / "model"), signs=True)
    review.unlink()
    assert verify_evidence(request).review is None


@pytest.mark.slow
def test_the_rows_beside_the_evidence_of_another_request_are_not_compared(tmp_path: Path):
    target = write_model(tmp_path / "target", 1.0)
    one, two = (write_request(tmp_path / name, name, target, key=KEY) for name in ("Ann", "Eva"))
    shutil.rmtree(one / "evidence")
    shutil.copytree(two / "evidence", one / "evidence")
    assert verify_evidence(one).review is None
    # Evidence of older versions has no hash of the rows to review.
    old = tmp_path / "old"
    request = record().request.model_copy(update={"review": None})
    write_evidence(record().model_copy(update={"request": request}), old / "evidence", KEY)
    assert verify_evidence(old).review is None
