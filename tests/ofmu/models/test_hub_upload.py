"""Upload a model to a small hub on this machine, through the hub's own library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from hub_server import Hub, hub_server
from ofmu.errors import ModelError
from ofmu.models.hub_upload import check_upload, upload_model


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors", "README.md", "metrics.json", "config.yaml"):
        (tmp_path / name).write_text("---\nlibrary_name: transformers\n---\n" if name == "README.md" else name)
    return tmp_path


def test_a_model_is_uploaded_to_a_new_private_repository(hub: Hub, model: Path) -> None:
    url = upload_model(model, "me/forgetful")
    assert url == f"{hub.url}/me/forgetful"
    assert hub.private == {"me/forgetful": True}
    stored = hub.files["me/forgetful"]
    # The two other files name paths and machines.
    assert set(stored) == {".gitattributes", "config.json", "model.safetensors", "README.md"}
    assert stored["model.safetensors"] == b"model.safetensors"
    assert upload_model(model, "me/open", public=True)
    assert hub.private["me/open"] is False


def test_nothing_on_the_hub_is_replaced(hub: Hub, model: Path) -> None:
    upload_model(model, "me/forgetful")
    before = dict(hub.files["me/forgetful"])
    (model / "config.json").write_text("other")
    with pytest.raises(ModelError, match=r"already holds README\.md.*name a new repository"):
        upload_model(model, "me/forgetful")
    assert hub.files["me/forgetful"] == before


def test_an_upload_that_ended_before_its_commit_can_be_repeated(hub: Hub, model: Path) -> None:
    hub.files["me/forgetful"] = {".gitattributes": b""}
    upload_model(model, "me/forgetful")
    assert "config.json" in hub.files["me/forgetful"]


def test_refusals_are_one_sentence(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="the login may not write there"):
        upload_model(model, "theirs/model")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ModelError, match="it does not know the login"):
        upload_model(model, "me/forgetful")
    assert not hub.files


def test_a_hub_that_cannot_be_reached(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with pytest.raises(ModelError, match="check the connection"):
        upload_model(model, "me/forgetful")


@pytest.mark.parametrize(
    ("name", "message"), [("forgetful", "names no owner"), ("a/b/c", "no name on the hub"), ("me/..", "no name")]
)
def test_names_that_the_hub_cannot_have(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_upload(name)


def test_without_a_login_or_with_a_blocked_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
    with pytest.raises(ModelError, match="hf auth login"):
        check_upload("me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="unset that variable"):
        check_upload("me/model")
