"""Joins or starts a Ray cluster, and compares its resources with what a run needs."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]
import ray
from ray._private import ray_logging

from cluster.head_monitor import HeadMonitor
from cluster.local import own_token, start_local_ray
from ofmu.errors import ClusterError
from ofmu.io.text import counted

if TYPE_CHECKING:
    from cluster.config import ClusterConfig

_CONNECT_SECONDS = 5.0
_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}
"""Environment variables that the user's own values override. They turn off Ray's reports. Trials keep the working
directory, so that relative paths stay valid. Ctrl-C ends a search at once, since a resumed search continues it."""

_RAYLET_MESSAGES = r"^A worker died|^Raylet is terminated|marked dead because|Workers? \(tasks / actors\) killed"


@contextmanager
def ray_session(
    cluster: ClusterConfig, device: str = "auto", resume_hint: Callable[[], str] = str
) -> Iterator[ClusterConfig]:
    """Join the cluster at ``cluster.address`` (or $RAY_ADDRESS), or start a local one. Leave the cluster at the end.

    If the caller has already initialised Ray, use that Ray and leave it running.

    Args:
        cluster: the address, and the worker layout.
        device: ``engine.device`` of the runs.
        resume_hint: see :class:`cluster.head_monitor.HeadMonitor`.

    Yields:
        The worker layout, with the number of GPUs decided.

    Raises:
        ClusterError: nothing answers at the address.
        LostHeadError: the head of the cluster is gone; see :class:`cluster.head_monitor.HeadMonitor`.
    """
    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield _with_decided_gpus(cluster, device)
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(address, _fix_of_address(cluster))
    with own_token() if address == "local" else nullcontext(), _joined(address, cluster, resume_hint):
        yield _with_decided_gpus(cluster, device)


def _with_decided_gpus(cluster: ClusterConfig, device: str) -> ClusterConfig:
    """Return the layout whose workers reserve a GPU each if the joined cluster has GPUs for them."""
    if cluster.gpus_per_worker != "auto":
        return cluster
    has_gpu = device != "cpu" and ray.cluster_resources().get("GPU", 0.0) >= 1
    if has_gpu and {node["NodeID"] for node in ray.nodes()} == {ray.get_runtime_context().get_node_id()}:
        # Ray counts the cards of this machine, also where PyTorch is built without CUDA.
        import torch

        has_gpu = torch.cuda.is_available()
    return cluster.model_copy(update={"gpus_per_worker": float(has_gpu)})


@contextmanager
def _joined(address: str, cluster: ClusterConfig, resume_hint: Callable[[], str]) -> Iterator[None]:
    """Join the cluster at ``address``, or start a local one. Leave the cluster at the end."""
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if address == "local":
            # Ray frees the resources of a killed worker group only through the dashboard's State API.
            start_local_ray(dashboard=cluster.num_workers > 0)
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ClusterError:
        raise
    except (OSError, RuntimeError, ValueError, TimeoutError) as error:
        problem = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ClusterError(
            f"Cannot join the Ray cluster at '{address}' ({problem}): {_fix_of_address(cluster)}"
        ) from error
    if callable(on_terminate) and threading.current_thread() is threading.main_thread():
        # ray.init installs its own handler, which prints a stack trace and aborts.
        signal.signal(signal.SIGTERM, on_terminate)
    _silence_raylets()
    monitor = HeadMonitor(resume_hint)
    try:
        with monitor:
            yield
    finally:
        if not monitor.is_lost:
            ray.shutdown()


def _silence_raylets() -> None:
    """Keep the raylets' messages about dead workers and nodes out of the driver's output.

    These messages can be pages long. They stay in Ray's logs, and a search reports itself what they mean for its
    trials. Other Ray messages, such as unsatisfiable resource requests, are still printed.
    """
    # $RAY_DEDUP_LOGS_SKIP_REGEX would set this attribute too, but Ray reads the variable only when it is imported.
    ray_logging.stdout_deduplicator.skip_re = re.compile(_RAYLET_MESSAGES)


def max_parallel_trials(cluster: ClusterConfig, wanted: int | None) -> int:
    """Return how many trials fit on the joined cluster at the same time, at most ``wanted``.

    Raises:
        ClusterError: not even one trial fits.
    """
    workers = max(cluster.num_workers, 1)
    for kind, each, available in _resources(cluster):
        if workers * each > available:
            raise ClusterError(
                f"One trial needs {workers * each:g} {kind}s ({counted(workers, 'worker')} of {each:g}), "
                f"but the Ray cluster has {available:g}: lower cluster.num_workers or "
                f"cluster.{kind.lower()}s_per_worker, or join a larger cluster"
            )
    return free_slots(cluster, wanted)


def free_slots(cluster: ClusterConfig, wanted: int | None) -> int:
    """Return how many trials fit on the joined cluster at the same time, at most ``wanted``.

    Return 0 if not even one trial fits, since the cluster may just have lost nodes.
    """
    workers = max(cluster.num_workers, 1)
    slots = min((int(available / (workers * each) + 1e-9) for _, each, available in _resources(cluster)), default=1)
    return min(slots, wanted) if wanted else slots


def _resources(cluster: ClusterConfig) -> list[tuple[str, float, float]]:
    """Return each resource that workers use: its name, the amount per worker, and the joined cluster's total."""
    total = ray.cluster_resources()
    wants = (("CPU", cluster.cpus_per_worker), ("GPU", cluster.reserved_gpus))
    return [(kind, each, total.get(kind, 0.0)) for kind, each in wants if each > 0]


def _fix_of_address(cluster: ClusterConfig) -> str:
    """Return how to correct the address, by where the address comes from."""
    if cluster.address is None and os.environ.get("RAY_ADDRESS"):
        return "correct the variable RAY_ADDRESS, or unset it to search on this machine"
    return "correct cluster.address, or leave it out to search on this machine"


def _check_reachable(address: str, fix: str) -> None:
    if address in ("local", "auto"):
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise ClusterError(f"The address '{address}' must have the form host:port, ray://host:port or 'auto': {fix}")
    problem = _connection_problem(f"{host}:{port}", host, port)
    if problem:
        raise ClusterError(
            f"Nothing answers as a Ray cluster at the address '{address}' ({problem}): start the cluster, {fix}"
        )


def _connection_problem(target: str, host: str, port: int) -> str | None:
    """Return why ``target`` is not a Ray cluster; None if it is one.

    Ray itself would try for minutes and print messages.
    """
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
