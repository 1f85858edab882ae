"""Errors of the hub become one sentence. A local server plays the hub and sends the hub's error codes."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import constants

from ofmu.data.encoding import load_tokenizer
from ofmu.errors import ModelError
from ofmu.models.hub import cached_directory, hub_reason, local_directory
from ofmu.models.language import load_model
from ofmu.preparer import find_reference_scores, find_target_scores
from ofmu.run_config import UnlearnConfig

ANSWERS = {
    "org/missing": (404, "RepoNotFound", "the hub has no public repository of that name: check the name"),
    "org/gated": (403, "GatedRepo", "the hub gives access only on request: request access on its page"),
    "org/moved": (404, "RevisionNotFound", "the hub has no such revision of it"),
}


class Hub(BaseHTTPRequestHandler):
    """Answers every request as the hub does: with a status and the header X-Error-Code."""

    def do_GET(self) -> None:
        status, code, _ = next(answer for name, answer in ANSWERS.items() if name in self.path)
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def sentence_about(name: str, revision: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        local_directory(name, revision)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 220
    shown = f"'{name}'" if "/" in name else f"{name} (looked for at {Path.cwd() / name})"
    assert sentence.startswith(f"There is no model directory {shown}, and ")
    return sentence


@pytest.mark.parametrize("name", ANSWERS)
def test_an_error_of_the_hub_is_one_sentence(hub: None, name: str) -> None:
    assert ANSWERS[name][2] in sentence_about(name)


def test_an_unreachable_hub_and_a_wrong_name_have_different_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached" in sentence_about("org/some")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "unset that variable" in sentence_about("org/some")


def test_an_invalid_hub_name_is_an_error() -> None:
    assert "no valid hub name" in sentence_about("bad name!!")
    with pytest.raises(ModelError, match="no valid hub name"):
        load_model("bad name!!")


def test_a_tokenizer_at_an_invalid_hub_name_has_the_same_reason() -> None:
    with pytest.raises(ModelError, match="with a tokenizer, and it is no valid hub name"):
        load_tokenizer("bad name!!")


def test_a_lookup_in_the_cache_downloads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert cached_directory("org/target") is None
    with pytest.raises(ModelError, match="There is no model directory"):
        cached_directory(str(tmp_path / "gone"))
    model = {"path": "org/target", "is_target": True, "base": "org/base"}
    config = UnlearnConfig.model_validate({"model": model})
    assert find_target_scores(config) is None
    assert find_reference_scores(config) is None


def test_a_refused_connection_is_told_from_a_wrong_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Datasets raises a ConnectionError without a cause. HTTP clients wrap the errors of the system."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match="refused") as refused:
        urllib.request.urlopen("http://127.0.0.1:9")
    try:
        raise ValueError("no such host") from socket.gaierror(-2, "Name or service not known")
    except ValueError as error:
        nowhere = error
    stopped = (ConnectionError("Couldn't reach 'org/some' on the Hub (ConnectError)"), refused.value.reason, nowhere)
    for each in (*stopped, TimeoutError("timed out")):
        assert hub_reason(each).startswith("the hub cannot be reached")
    absent = DatasetNotFoundError("Dataset 'org/some' doesn't exist on the Hub or cannot be accessed.")
    assert hub_reason(absent).startswith("the hub has nothing of that name")


def test_a_name_in_a_folder_that_is_there_is_taken_for_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "model").mkdir(parents=True)
    with pytest.raises(ModelError) as caught:
        local_directory("runs/modle")
    assert str(caught.value).startswith(
        f"There is no model directory runs/modle (looked for at {tmp_path}/runs/modle; did you mean 'runs/model'?): "
        "check the path. If it is a hub name, HF_HUB_OFFLINE blocks the hub"
    )
