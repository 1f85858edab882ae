"""Looks a machine or a whole cluster over before a search meets what is wrong with it."""

from __future__ import annotations

import importlib
import multiprocessing
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cluster.config import ClusterConfig
from cluster.doctor import checks
from cluster.doctor.checks import Check, NodeRequest
from cluster.session import ray_session, trials_at_a_time
from cluster.storage.mirror import below, reason_of, shown, storage_at
from ofmu.errors import ClusterError
from ofmu.run_config import UnlearnConfig

_MARKS = ".ofmu-doctor-"
_NODE_SECONDS = 180.0
_GROUP_SECONDS = 60.0
_GPU_WAIT_SECONDS = 30.0
_INSTALL = "install ofmu on every node (cluster/deploy/Dockerfile), or run the doctor through ofmu submit"


def examine_machine(config: UnlearnConfig | None = None, storage: str | None = None) -> list[Check]:
    """Look at this machine alone, for searches without a cluster; takes some ten seconds."""
    found = [_dashboard_parts()]
    gpus = 0
    with _marked({"storage": storage} if storage else {}) as (marks, failed):
        request = NodeRequest("here", checks.versions(), marks=marks, config=_mapping(config))
        # in a process of its own, as trials are: a broken install may end it
        with _pool(1) as pool:
            try:
                found += pool.submit(checks.inspect_node, request).result(_NODE_SECONDS)
                gpus = pool.submit(checks.visible_gpus).result(_GROUP_SECONDS)
            except (OSError, RuntimeError, TimeoutError) as error:
                found.append(Check("this machine", "fail", f"cannot be looked at ({error})", "install ofmu again"))
        found += failed or _missing_marks(marks, {"here": ""})
    for backend, ranks in (("gloo", 2), *((("nccl", gpus),) if gpus else ())):
        found.append(_local_group(backend, ranks))
    return [replace(check, where="") for check in found]


def examine_cluster(
    cluster: ClusterConfig,
    config: UnlearnConfig | None = None,
    storage: str | None = None,
    *,
    max_concurrent_trials: int | None = None,
) -> list[Check]:
    """Join the cluster and look at each of its nodes, and at what is between them.

    Args:
        cluster: where it is, and what one trial needs.
        config: whose model and data are looked for on every node.
        storage: path or URI that every node must be able to write and read.
        max_concurrent_trials: trials at a time that the search would like.
    """
    try:
        with ray_session(cluster):
            nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
            found = [_size(nodes), _dashboard_answers()]
            if config is not None:
                found.append(_room(cluster, max_concurrent_trials))
            found += _inspect_nodes(nodes, config, storage)
            found.append(_group(nodes))
            gpus = int(ray.cluster_resources().get("GPU", 0))
            if gpus:
                found.append(_gpu_group(gpus))
            return found
    except ClusterError as error:
        sentence, _, mend = str(error).rpartition(": ")
        return [Check("cluster", "fail", sentence or str(error), mend if sentence else "start the cluster")]


def examine_job_server(address: str) -> list[Check]:
    """Look at a cluster's job server from here; raises nothing, since each error is a finding."""
    from cluster.jobs.server import JobServer

    try:
        server = JobServer(address)
    except ClusterError as error:
        sentence, _, mend = str(error).rpartition(": ")
        return [Check("job server", "fail", sentence, mend)]
    found = [Check("job server", "ok", f"answers at {server.address}")]
    if server.ray_version != ray.__version__:
        mend = f"install ray[default]=={server.ray_version} here, or start the cluster with {ray.__version__}"
        versions = f"{ray.__version__} here, {server.ray_version} on the cluster"
        return [*found, Check("ray, client and cluster", "warn", versions, mend)]
    return [*found, Check("ray, client and cluster", "ok", ray.__version__)]


def merged(found: Sequence[Check]) -> list[Check]:
    """Return the checks in order, those that say the same of several nodes as one."""
    groups: dict[Check, list[str]] = {}
    for check in found:
        groups.setdefault(replace(check, where=""), []).append(check.where)
    result = []
    for check, hosts in groups.items():
        named = sorted({host for host in hosts if host})
        where = f"{len(hosts)} nodes" if len(hosts) > 3 else ", ".join(named)
        result.append(replace(check, where=where))
    return result


def _dashboard_parts() -> Check:
    try:
        importlib.import_module("ray.dashboard.optional_deps")
    except ImportError as error:
        mend = "pip install 'ray[default]': without it stopped trials with workers keep their processors"
        return Check("dashboard", "fail", f"Ray is installed without it ({error.name} is missing)", mend)
    return Check("dashboard", "ok", "ray[default] is installed")


def _dashboard_answers() -> Check:
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        list_nodes(timeout=20)
    except (RayStateApiException, RayError, OSError, RuntimeError, ValueError) as error:
        mend = "start the head with ray[default] and its dashboard: stopped trials keep their processors without it"
        return Check("dashboard", "fail", f"does not answer ({reason_of(error)})", mend)
    return Check("dashboard", "ok", "answers")


def _size(nodes: Mapping[str, Any]) -> Check:
    total = ray.cluster_resources()
    count = f"{len(nodes)} node{'s' * (len(nodes) > 1)}"
    return Check("cluster", "ok", f"{count}, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs")


def _room(cluster: ClusterConfig, wanted: int | None) -> Check:
    try:
        room = trials_at_a_time(cluster, wanted)
    except ClusterError as error:
        sentence, _, mend = str(error).rpartition(": ")
        return Check("room", "fail", sentence, mend)
    return Check("room", "ok", f"{room} trials at a time")


def _inspect_nodes(nodes: Mapping[str, Any], config: UnlearnConfig | None, storage: str | None) -> list[Check]:
    """Send a task to every node; each leaves its mark on the shared folders, which are then looked for here."""
    from ofmu.io.cache import cache_root

    shared = {"storage": storage} if storage else {}
    if config is not None and len(nodes) > 1:
        # prepared models lie there, and the trials of every node load them
        shared["cache_dir"] = str(cache_root(config.cache_dir))
    inspect = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(checks.inspect_node)
    found: list[Check] = []
    with _marked(shared) as (marks, failed):
        tasks = {
            node_id: inspect.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(
                NodeRequest(
                    node_id,
                    checks.versions(),
                    gpus=int(node["Resources"].get("GPU", 0)),
                    marks=marks,
                    config=_mapping(config),
                )
            )
            for node_id, node in nodes.items()
        }
        for node_id, task in tasks.items():
            found += _answer(task, nodes[node_id]["NodeManagerHostname"])
        found += failed or _missing_marks(marks, {each: nodes[each]["NodeManagerHostname"] for each in nodes})
    return found


def _answer(task: Any, host: str) -> list[Check]:
    try:
        answer: list[Check] = ray.get(task, timeout=_NODE_SECONDS)
        return answer
    except GetTimeoutError:
        return [Check("node", "fail", f"no answer in {_NODE_SECONDS:.0f} s", "look at its raylet's log", host)]
    except (RayError, RuntimeError, ImportError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return [Check("node", "fail", f"cannot run ofmu ({lines[-1].strip() if lines else error})", _INSTALL, host)]


@contextmanager
def _marked(places: Mapping[str, str]) -> Iterator[tuple[dict[str, str], list[Check]]]:
    """Leave the driver's mark in a folder of its own below each place; yield the folders, and the places that fail."""
    marks: dict[str, str] = {}
    failed: list[Check] = []
    for name, place in places.items():
        folder = below(place, f"{_MARKS}{uuid.uuid4().hex[:12]}")
        try:
            checks.write_mark(folder, checks.DRIVER)
        except (OSError, ValueError) as error:
            mend = "name a folder, or a URI such as s3://bucket/path, that can be written from every node"
            failed.append(Check(name, "fail", f"{shown(place)} cannot be written from here ({reason_of(error)})", mend))
        else:
            marks[name] = folder
    try:
        yield marks, failed
    finally:
        for folder in marks.values():
            system, path = storage_at(folder)
            system.delete_dir(path)


def _missing_marks(marks: Mapping[str, str], nodes: Mapping[str, str]) -> list[Check]:
    """Look here for the mark that each node has left."""
    found: list[Check] = []
    for name, folder in marks.items():
        place = shown(folder).partition(f"/{_MARKS}")[0]
        mend = f"mount the storage of {place} on every node, at the same path"
        unseen = [host for node, host in nodes.items() if not _is_seen(folder, node)]
        found += [
            Check(name, "fail", f"what is written to {place} there is not seen here", mend, each) for each in unseen
        ]
        if not unseen:
            found.append(Check(name, "ok", f"{place}: what every node writes is read here"))
    return found


def _is_seen(folder: str, mark: str) -> bool:
    try:
        return checks.read_mark(folder, mark)
    except (OSError, ValueError):
        return False


def _group(nodes: Mapping[str, Any]) -> Check:
    """Add numbers up over gloo: one rank on every node, or two where there is one node."""
    order = list(nodes) if len(nodes) > 1 else list(nodes) * 2
    return _reduce("gloo", [NodeAffinitySchedulingStrategy(each, soft=False) for each in order])


def _gpu_group(gpus: int) -> Check:
    """Add numbers up over nccl, a rank on every GPU; trials that run already are not disturbed."""
    group = placement_group([{"GPU": 1}] * gpus)
    try:
        if not group.wait(_GPU_WAIT_SECONDS):
            mend = "run the doctor again when the cluster is idle"
            return Check("nccl", "warn", f"not tried, since some of the {gpus} GPUs are in use", mend)
        return _reduce("nccl", [PlacementGroupSchedulingStrategy(group, 0, i) for i in range(gpus)], num_gpus=1)
    finally:
        remove_placement_group(group)


def _reduce(backend: str, places: Sequence[Any], num_gpus: float = 0) -> Check:
    ask = ray.remote(num_cpus=0, num_gpus=0, max_retries=0)(checks.free_address)
    join = ray.remote(num_cpus=0, num_gpus=num_gpus, max_retries=0, max_calls=1)(checks.all_reduce)
    world = len(places)

    def run() -> list[float]:
        address = ray.get(ask.options(scheduling_strategy=places[0]).remote(), timeout=_GROUP_SECONDS)
        tasks = [
            join.options(scheduling_strategy=place).remote(rank, world, address, backend, _GROUP_SECONDS)
            for rank, place in enumerate(places)
        ]
        sums: list[float] = ray.get(tasks, timeout=2 * _GROUP_SECONDS)
        return sums

    return _judge(backend, world, run)


def _local_group(backend: str, ranks: int) -> Check:
    def run() -> list[float]:
        join = partial(
            checks.all_reduce, world_size=ranks, address=checks.free_address(), backend=backend, seconds=_GROUP_SECONDS
        )
        with _pool(ranks) as pool:
            return list(pool.map(join, range(ranks), timeout=2 * _GROUP_SECONDS))

    return _judge(backend, ranks, run)


def _judge(backend: str, world: int, run: Callable[[], list[float]]) -> Check:
    """Compare the ranks' sums with the closed form of 1 + … + world."""
    mend = (
        "open the nodes' ports to each other and let their host names resolve"
        if backend == "gloo"
        else "check nvidia-smi on each node and run with NCCL_DEBUG=INFO; NCCL_SOCKET_IFNAME picks the network"
    )
    try:
        sums = run()
    except (RayError, OSError, RuntimeError, TimeoutError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return Check(backend, "fail", f"all-reduce failed ({lines[-1].strip()[:160] if lines else error})", mend)
    wanted = world * (world + 1) / 2
    if any(each != wanted for each in sums):
        return Check(backend, "fail", f"all-reduce over {world} ranks gave {sums}, not {wanted:g}", mend)
    return Check(backend, "ok", f"all-reduce over {world} ranks")


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _mapping(config: UnlearnConfig | None) -> Mapping[str, Any] | None:
    return None if config is None else config.model_dump(mode="json")
