"""What protects a local Ray from other users, without starting one."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._raylet import (  # type: ignore[attr-defined]
    AuthenticationMode,
    AuthenticationTokenLoader,
    Config,
    get_authentication_mode,
)

from cluster import local
from cluster.doctor import access
from cluster.storage.credentials import Credentials, found_credentials, set_credentials
from ofmu.errors import ClusterError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    return tmp_path


@pytest.mark.parametrize(("before", "after"), [(0o755, 0o700), (0o777, 0o700), (0o750, 0o700), (0o500, 0o500)])
def test_other_users_lose_the_right_to_read_the_token(home: Path, before: int, after: int) -> None:
    local.protect_token()
    assert not (home / ".ray").exists(), "nothing to protect"
    (home / ".ray").mkdir()
    token = home / ".ray" / "auth_token"
    token.write_text("t")
    (home / ".ray").chmod(before)
    token.chmod(0o664)
    local.protect_token()
    assert (mode(home / ".ray"), mode(token)) == (after, 0o600)
    assert token.read_text() == "t"


def test_rays_files_are_in_a_folder_of_this_user_only(home: Path) -> None:
    folder = local._private_folder()
    assert folder.parent == home / f"ofmu-{os.getuid()}"
    assert mode(folder.parent) == 0o700
    folder.parent.chmod(0o777)
    assert local._private_folder() == folder
    assert mode(folder.parent) == 0o700


def test_a_folder_of_somebody_else_is_refused(home: Path) -> None:
    place = home / f"ofmu-{os.getuid()}"
    (home / "theirs").mkdir()
    place.symlink_to(home / "theirs")
    with pytest.raises(ClusterError, match="set RAY_TMPDIR"):
        local._private_folder()
    place.unlink()
    place.write_text("")
    with pytest.raises(ClusterError, match="set RAY_TMPDIR"):
        local._private_folder()
    place.unlink()
    if os.getuid() == 0:
        place.mkdir()
        os.chown(place, 12345, -1)
        with pytest.raises(ClusterError, match="belongs to another user"):
            local._private_folder()


def test_processes_of_ray_write_private_files_until_they_get_the_users_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with local._private_files():
            (tmp_path / "log").touch()
            local.restore_umask()
            (tmp_path / "result").touch()
        (tmp_path / "later").touch()
        local.restore_umask()  # not in a process of Ray
        (tmp_path / "last").touch()
    finally:
        os.umask(before)
    modes = {path.name: mode(path) for path in tmp_path.iterdir()}
    assert modes == {"log": 0o600, "result": 0o640, "later": 0o640, "last": 0o640}


def test_credentials_are_not_shown_and_replace_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "planted")
    found = found_credentials()
    assert found == {"AWS_ACCESS_KEY_ID": "planted"}
    assert "planted" not in f"{found} {found!r}"
    set_credentials({"AWS_SECRET_ACCESS_KEY": "theirs"})
    assert "AWS_SECRET_ACCESS_KEY" not in os.environ, "a node's own credentials are one set"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "")
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    set_credentials(Credentials(AWS_SECRET_ACCESS_KEY="ours"))
    assert os.environ.pop("AWS_SECRET_ACCESS_KEY") == "ours"


def test_the_doctor_names_a_token_that_others_can_read(home: Path) -> None:
    assert access.token_file().state == "ok"
    (home / ".ray").mkdir()
    token = home / ".ray" / "auth_token"
    token.write_text("t")
    token.chmod(0o644)
    assert access.token_file().state == "warn"
    subprocess.run(access.token_file().fix, shell=True, check=True)
    assert access.token_file().state == "ok"


def test_a_ray_of_our_own_has_a_token_that_lies_in_no_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    AuthenticationTokenLoader.instance().reset_cache()
    tokens = []
    for _ in range(2):
        with local.own_token():
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
            os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does when it starts
            Config.initialize("")
            assert AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
        assert not [name for name in os.environ if name.startswith("RAY_AUTH")]
        assert get_authentication_mode() == AuthenticationMode.DISABLED
    assert len(set(tokens)) == 2
    assert not (home / ".ray").exists()


@pytest.mark.parametrize("how", ["file", "path", "variable", "disabled"])
def test_a_token_of_the_user_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (home / ".ray").mkdir()
    if how == "file":
        (home / ".ray" / "auth_token").write_text("a" * 64)
    else:
        variables = {"path": "RAY_AUTH_TOKEN_PATH", "variable": "RAY_AUTH_TOKEN", "disabled": "RAY_AUTH_MODE"}
        monkeypatch.setenv(variables[how], "disabled" if how == "disabled" else "b" * 64)
    AuthenticationTokenLoader.instance().reset_cache()
    before = dict(os.environ)
    with local.own_token():
        assert dict(os.environ) == before
    assert dict(os.environ) == before
    AuthenticationTokenLoader.instance().reset_cache()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("only root can mount a file system of a limited size")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_why_ray_does_not_start_is_said(small_disk: Path, tmp_path: Path) -> None:
    timeout = Exception("The current node timed out during startup. This could happen because of anything.")
    sentence = local._start_sentence(small_disk / "ray", timeout)
    assert f"free some space in {small_disk}, which is full" in sentence
    assert "took too long" in sentence
    assert "session_latest/logs" in local._start_sentence(tmp_path / "ray", RuntimeError("no port\nis free"))
    assert "(no port)" in local._start_sentence(tmp_path / "ray", RuntimeError("no port\nis free"))


SLOW = "The current node timed out during startup."


@pytest.mark.parametrize(
    ("errors", "starts", "sentence"),
    [
        ([SLOW, SLOW], 3, None),
        ([SLOW, SLOW, SLOW], 3, "took too long"),
        (["No space left on device"], 1, "No space left on device"),
    ],
)
def test_a_start_that_takes_too_long_is_tried_again(
    errors: list[str], starts: int, sentence: str | None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, calls = list(errors), []

    def init(**options: object) -> None:
        calls.append(options)
        if left:
            raise Exception(left.pop(0))

    monkeypatch.setattr(local.ray, "init", init)
    monkeypatch.setattr(local.ray, "shutdown", lambda: None)
    monkeypatch.setattr(local.ray._private.worker, "_global_node", SimpleNamespace(get_session_dir_path=lambda: home))
    if sentence is None:
        local.start_local_ray(dashboard=False)
    else:
        with pytest.raises(ClusterError, match=sentence):
            local.start_local_ray(dashboard=False)
    assert len(calls) == starts
