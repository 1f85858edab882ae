"""The Ray cluster of a search: joined or started, measured against what a trial needs, and left again."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]
import ray
from ray._private import ray_logging

from cluster.head_monitor import Lifeline
from ofmu.errors import ClusterError

if TYPE_CHECKING:
    from cluster.config import ClusterConfig

_CONNECT_SECONDS = 5.0
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}
"""Ray's reports stay out of the way of ours; trials keep the working directory, so relative paths hold;
Ctrl-C ends the search at once, since a resume continues it."""

_RAYLETS = r"^A worker died|^Raylet is terminated|marked dead because|Workers? \(tasks / actors\) killed"


@contextmanager
def ray_session(cluster: ClusterConfig, then: Callable[[], str] = str) -> Iterator[None]:
    """Join the cluster at ``cluster.address`` (or $RAY_ADDRESS), or start a local one; leave it at the end.

    A Ray that the caller has already initialised is used and left running. ``then`` tells a user whose cluster was
    lost how to go on, as "continue with ...".

    Raises:
        ClusterError: nothing answers at the address.
        LostHeadError: the cluster's head is gone, as :class:`cluster.head_monitor.Lifeline` says.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    _refuse_unreachable(address)
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # Worker groups of stopped trials are cleaned up only through the dashboard's State API.
            **({"include_dashboard": cluster.num_workers > 0} if address == "local" else {}),
        )
    except (OSError, RuntimeError, ValueError, TimeoutError) as error:
        problem = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ClusterError(
            f"Cannot join the Ray cluster at '{address}' ({problem}): correct cluster.address or leave it out"
        ) from error
    if callable(on_terminate) and threading.current_thread() is threading.main_thread():
        # ray.init puts a handler of its own in its place, which prints a stack and aborts
        signal.signal(signal.SIGTERM, on_terminate)
    _silence_raylets()
    lifeline = Lifeline(then)
    try:
        with lifeline:
            yield
    finally:
        if not lifeline.is_lost:
            ray.shutdown()


def _silence_raylets() -> None:
    """Keep what raylets say of dead workers and nodes, up to pages of their state, off the driver's output.

    It stays in Ray's own logs; what it means for a search, the search says itself. What else Ray has to say, as that
    no node of a kind can be had, is passed on.
    """
    # what $RAY_DEDUP_LOGS_SKIP_REGEX sets, but ray reads that only when it is imported
    ray_logging.stdout_deduplicator.skip_re = re.compile(_RAYLETS)


def trials_at_a_time(cluster: ClusterConfig, wanted: int | None) -> int:
    """Return how many trials the joined cluster holds at once, at most ``wanted``.

    Raises:
        ClusterError: it does not even hold one.
    """
    workers = max(cluster.num_workers, 1)
    for kind, each, have in _needs(cluster):
        if workers * each > have:
            raise ClusterError(
                f"One trial needs {workers * each:g} {kind}s ({workers} worker{'s' * (workers > 1)} of {each:g}), "
                f"but the Ray cluster has {have:g}: lower cluster.num_workers or "
                f"cluster.{kind.lower()}s_per_worker, or join a larger cluster"
            )
    return room_for_trials(cluster, wanted)


def room_for_trials(cluster: ClusterConfig, wanted: int | None) -> int:
    """Return the same for a cluster that may just have lost nodes: 0 where not even one trial fits."""
    workers = max(cluster.num_workers, 1)
    room = min((int(have / (workers * each) + 1e-9) for _, each, have in _needs(cluster)), default=1)
    return min(room, wanted) if wanted else room


def _needs(cluster: ClusterConfig) -> list[tuple[str, float, float]]:
    """Return what workers use: the resource, how much each needs, and how much of it the joined cluster has."""
    total = ray.cluster_resources()
    wants = (("CPU", cluster.cpus_per_worker), ("GPU", cluster.gpus_per_worker))
    return [(kind, each, total.get(kind, 0.0)) for kind, each in wants if each > 0]


def _refuse_unreachable(address: str) -> None:
    if address in ("local", "auto"):
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise ClusterError(f"cluster.address '{address}' must have the form host:port, ray://host:port or 'auto'")
    problem = _problem_of(f"{host}:{port}", host, port)
    if problem:
        raise ClusterError(
            f"Nothing answers as a Ray cluster at the address '{address}' ({problem}): start the cluster, "
            "correct cluster.address, or leave it out to search on this machine"
        )


def _problem_of(target: str, host: str, port: int) -> str | None:
    """Return why ``target`` is no Ray cluster: Ray itself would try for minutes, and print what it tries."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return str(error.strerror or error)
    if os.environ.get("RAY_USE_TLS") == "1":
        return None
    with grpc.insecure_channel(target) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            return "something else listens there"
    return None
