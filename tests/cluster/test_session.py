"""An address at which no cluster answers: the error names the place where the address stands."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cluster.config import ClusterConfig
from cluster.session import ray_session
from ofmu.cli.main import main
from ofmu.errors import ClusterError


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address whose port is bound and not listened on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("form", ["{}", "ray://{}", "nonsense"])
def test_the_fix_names_what_holds_the_address(form: str, nowhere: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = form.format(nowhere)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match="correct the variable RAY_ADDRESS, or unset it") as caught:
        ray_session(ClusterConfig()).__enter__()
    assert "cluster.address" not in str(caught.value)
    with pytest.raises(ClusterError, match=r"correct cluster\.address, or leave it out") as caught:
        ray_session(ClusterConfig(address=address)).__enter__()
    assert "RAY_ADDRESS" not in str(caught.value)


def test_doctor_names_the_variable_too(
    nowhere: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nowhere)
    with pytest.raises(SystemExit):
        main(["doctor"])
    output = "".join(capsys.readouterr())
    assert "RAY_ADDRESS" in output
    assert "cluster.address" not in output
