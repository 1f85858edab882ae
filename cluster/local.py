"""A Ray cluster on this machine alone: it listens on loopback only, and other users cannot read its files.

Whoever reaches Ray's ports, or has its token, runs code as the user who started Ray.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from ofmu.errors import ClusterError

_UMASK_VARIABLE = "OFMU_UMASK"
"""The user's own umask, for Ray's processes."""
_PRIVATE = 0o077
_MIN_FREE_BYTES = 16 * 2**20
"""Free space below which Ray's processes may not start."""
_START_ATTEMPTS = 3
"""Ray gives its processes a fixed time to start, 30 s in 2.60. On a busy machine a second start finds warm files."""
_TIMED_OUT = "timed out"
"""Words of Ray's error for processes that start too slowly."""
_MODE_VARIABLE, _TOKEN_VARIABLE, _TOKEN_PATH_VARIABLE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def start_local_ray(*, dashboard: bool) -> None:
    """Start Ray on this machine and join it.

    Ray's files are in a folder of this user only, unless ``RAY_TMPDIR`` names another one.

    Raises:
        ClusterError: Ray does not start, or there is no folder for its files.
    """
    protect_token()
    loopback = _loopback_interface()
    for name in _INTERFACE_VARIABLES if loopback else ():
        os.environ.setdefault(name, loopback)
    folder = Path(os.environ["RAY_TMPDIR"], "ray") if "RAY_TMPDIR" in os.environ else _private_folder()
    for attempt in range(1, _START_ATTEMPTS + 1):
        try:
            with _private_files(), _loopback_only():
                ray.init(
                    address="local",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    include_dashboard=dashboard,
                    _temp_dir=str(folder),
                )
            break
        except Exception as error:
            # Ray raises Exception itself if one of its processes does not start.
            if attempt == _START_ATTEMPTS or _TIMED_OUT not in str(error):
                raise ClusterError(_start_sentence(folder, error)) from error
            ray.shutdown()
    # Ray lets everybody write into its session folder, whatever the umask.
    os.chmod(ray._private.worker._global_node.get_session_dir_path(), 0o700)


@contextmanager
def own_token() -> Iterator[None]:
    """Give a Ray that this process starts a token of its own, which lies in no file. Leave a token of the user alone.

    Ray itself would write a token to ~/.ray, and every later ``ray start`` of the user would ask for it.
    """
    mode, loader = os.environ.get(_MODE_VARIABLE), AuthenticationTokenLoader.instance()
    is_off = mode is not None and mode.lower() != "token"
    if is_off or _TOKEN_PATH_VARIABLE in os.environ or loader.has_token(ignore_auth_mode=True):
        yield
        return
    os.environ[_TOKEN_VARIABLE] = secrets.token_hex(32)
    loader.reset_cache()
    try:
        yield
    finally:
        os.environ.pop(_TOKEN_VARIABLE, None)
        # Ray sets the mode when it starts, and this process may join a cluster without a token later.
        if mode is None:
            os.environ.pop(_MODE_VARIABLE, None)
        loader.reset_cache()
        Config.initialize("")


def is_loopback_cluster() -> bool:
    """Return whether the joined cluster listens on loopback only, so that all its processes are on this machine."""
    return str(ray.get_runtime_context().gcs_address).rpartition(":")[0] in ("127.0.0.1", "[::1]", "::1")


def restore_umask() -> None:
    """Give this process of a local Ray the user's own umask, so that results have the modes that the user wants."""
    umask = os.environ.get(_UMASK_VARIABLE)
    if umask is not None:
        os.umask(int(umask, 8))


def protect_token() -> None:
    """Take the right to read Ray's token from other users. Ray itself leaves the token readable by everybody."""
    folder = Path.home() / ".ray"
    for path in (folder, folder / "auth_token"):
        with suppress(FileNotFoundError):
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & _PRIVATE:
                try:
                    path.chmod(mode & ~_PRIVATE)
                except OSError as error:
                    warnings.warn(
                        f"other users may read {path}, and whoever has Ray's token runs code as you "
                        f"({error.strerror}): make it readable by you only",
                        stacklevel=2,
                    )


def _start_sentence(folder: Path, error: Exception) -> str:
    """Return why Ray does not start on this machine, and what the user can do."""
    lines = str(error).strip().splitlines()
    problem = (lines[0] if lines else type(error).__name__).rstrip(".")
    place = next(each for each in (folder, *folder.parents) if each.is_dir())
    if _TIMED_OUT in problem:
        problem = "its processes took too long"
    if shutil.disk_usage(place).free < _MIN_FREE_BYTES:
        fix = f"free some space in {place}, which is full, or set RAY_TMPDIR to a folder on another disk"
    elif not os.access(place, os.W_OK):
        fix = f"set RAY_TMPDIR to a folder that can be written, which {place} cannot"
    else:
        fix = f"try again when the machine is less busy, or read the logs in {folder / 'session_latest' / 'logs'}"
    return f"Ray does not start on this machine ({problem}): {fix}"


def _private_folder() -> Path:
    """Return a folder for Ray's files that only this user can enter. Make it if it is missing.

    Ray's own default, /tmp/ray, is one folder of all users, in which each may replace the others' sessions.

    Raises:
        ClusterError: the folder cannot be made, belongs to another user, or is no folder.
    """
    folder = Path(os.environ.get("TMPDIR") or "/tmp", f"ofmu-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ClusterError(
            f"Cannot make {folder} for Ray's files ({error.strerror}): set RAY_TMPDIR to a short path of a folder of "
            "yours"
        ) from error
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ClusterError(f"{folder} belongs to another user: set RAY_TMPDIR to a short path of a folder of yours")
    if stat.S_IMODE(status.st_mode) & _PRIVATE:
        folder.chmod(0o700)
    # Ray opens its own folder to everybody, so it is one level deeper.
    return folder / "ray"


@contextmanager
def _private_files() -> Iterator[None]:
    """Let Ray's processes start under umask 077, and tell them the user's own."""
    umask = os.umask(_PRIVATE)
    os.environ[_UMASK_VARIABLE] = f"{umask:o}"
    try:
        yield
    finally:
        os.umask(umask)
        del os.environ[_UMASK_VARIABLE]


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Let Ray start at 127.0.0.1.

    Ray listens on all interfaces unless the address of its node is 127.0.0.1. It never takes this address, nor accepts
    it from the caller, unless clusters of several machines are switched off, as they are on macOS and Windows.
    """
    name, constant = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    before = os.environ.get(name)
    os.environ[name] = "0"
    # Ray read the variable when it was imported.
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = constant
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _loopback_interface() -> str:
    """Return the name of the loopback interface, such as ``lo``; empty if there is none."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "")
