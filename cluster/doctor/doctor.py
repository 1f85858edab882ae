"""Checks a machine or a whole cluster before a search, so that problems are found before trials start."""

from __future__ import annotations

import importlib
import multiprocessing
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from cluster.config import ClusterConfig
from cluster.doctor import access, checks
from cluster.doctor.checks import Check, NodeRequest
from cluster.jobs.server import JobServer
from cluster.session import max_parallel_trials, ray_session
from cluster.storage.uri import is_uri, join_uri, redacted, short_reason, storage_at
from ofmu.engine.device import NO_GPU, NO_GPU_FIX
from ofmu.errors import ClusterError
from ofmu.io.cache import cache_root
from ofmu.io.text import counted
from ofmu.run_config import UnlearnConfig

_PROBE_FOLDER = ".ofmu-doctor-"
_NODE_SECONDS = 180.0
_GROUP_SECONDS = 60.0
_GPU_WAIT_SECONDS = 30.0
_MAX_NAMED_HOSTS = 3
_INSTALL = "install ofmu on every node (cluster/deploy/Dockerfile), or run the doctor through ofmu submit"


def examine_machine(config: UnlearnConfig | None = None, storage: str | None = None) -> list[Check]:
    """Check this machine, for searches without a cluster. This takes about ten seconds.

    Args:
        config: check this config's model and data.
        storage: a path or URI that must be readable and writable.
    """
    found = [_dashboard_installed(), access.token_file()]
    gpus = 0
    with _probe_folders({"storage": storage} if storage else {}) as (probes, failed):
        request = NodeRequest("here", checks.versions(), probes=probes, config=_mapping(config))
        # In a process of its own, as trials are: a broken installation may end the process.
        with _pool(1) as pool:
            try:
                found += pool.submit(checks.inspect_node, request).result(_NODE_SECONDS)
                gpus = pool.submit(checks.visible_gpus).result(_GROUP_SECONDS)
            except (OSError, RuntimeError, TimeoutError) as error:
                found.append(Check("this machine", "fail", f"cannot be checked ({error})", "install ofmu again"))
        found += failed or _compare_probes(probes, {"here": ""})
    if config is not None and config.engine.device == "cuda" and not gpus:
        found.append(Check("device", "fail", NO_GPU, NO_GPU_FIX))
    for backend, ranks in (("gloo", 2), *((("nccl", gpus),) if gpus else ())):
        found.append(_all_reduce_here(backend, ranks))
    return [replace(check, host="") for check in found]


def examine_cluster(
    cluster: ClusterConfig,
    config: UnlearnConfig | None = None,
    storage: str | None = None,
    *,
    max_concurrent_trials: int | None = None,
) -> list[Check]:
    """Join the cluster. Check each of its nodes, and the connections between them.

    Args:
        cluster: the address, and what one trial needs.
        config: check this config's model and data on every node.
        storage: a path or URI that every node must be able to read and write.
        max_concurrent_trials: how many trials the search would like to run at the same time.
    """
    try:
        with ray_session(cluster, "auto" if config is None else config.engine.device) as cluster:
            nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
            found = [_size(nodes), _dashboard_answers(), access.cluster_access(), access.token_file()]
            if config is not None:
                found.append(_capacity(cluster, max_concurrent_trials))
            found += _inspect_nodes(nodes, config, storage)
            found.append(_all_reduce_over_nodes(nodes))
            gpus = int(ray.cluster_resources().get("GPU", 0))
            if gpus:
                found.append(_all_reduce_over_gpus(gpus))
            return found
    except ClusterError as error:
        return [Check.failed("cluster", error, "start the cluster")]


def examine_job_server(address: str) -> list[Check]:
    """Check a cluster's job server from here. Errors become failed checks."""
    try:
        server = JobServer(address)
    except ClusterError as error:
        return [Check.failed("job server", error, "start the cluster")]
    found = [Check("job server", "ok", f"answers at {server.address}")]
    if server.ray_version != ray.__version__:
        fix = f"install ray[default]=={server.ray_version} here, or start the cluster with {ray.__version__}"
        detail = f"{ray.__version__} here, {server.ray_version} on the cluster"
        return [*found, Check("ray, client and cluster", "warn", detail, fix)]
    return [*found, Check("ray, client and cluster", "ok", ray.__version__)]


def group_by_host(found: Sequence[Check]) -> list[Check]:
    """Return the checks in order. Equal checks of several nodes become one check that names all their hosts."""
    groups: dict[Check, list[str]] = {}
    for check in found:
        groups.setdefault(replace(check, host=""), []).append(check.host)
    grouped = []
    for check, hosts in groups.items():
        names = sorted({host for host in hosts if host})
        host = f"{len(hosts)} nodes" if len(hosts) > _MAX_NAMED_HOSTS else ", ".join(names)
        grouped.append(replace(check, host=host))
    return grouped


def _dashboard_installed() -> Check:
    try:
        importlib.import_module("ray.dashboard.optional_deps")
    except ImportError as error:
        fix = "pip install 'ray[default]': without it stopped trials with workers keep their processors"
        return Check("dashboard", "fail", f"Ray is installed without it ({error.name} is missing)", fix)
    return Check("dashboard", "ok", "ray[default] is installed")


def _dashboard_answers() -> Check:
    from ray.util.state import list_nodes
    from ray.util.state.exception import RayStateApiException

    try:
        list_nodes(timeout=20)
    except (RayStateApiException, RayError, OSError, RuntimeError, ValueError) as error:
        fix = "start the head with ray[default] and its dashboard: stopped trials keep their processors without it"
        return Check("dashboard", "fail", f"does not answer ({short_reason(error)})", fix)
    return Check("dashboard", "ok", "answers")


def _size(nodes: Mapping[str, Any]) -> Check:
    total = ray.cluster_resources()
    count = counted(len(nodes), "node")
    return Check("cluster", "ok", f"{count}, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs")


def _capacity(cluster: ClusterConfig, wanted: int | None) -> Check:
    try:
        trials = max_parallel_trials(cluster, wanted)
    except ClusterError as error:
        return Check.failed("capacity", error, "join a larger cluster")
    return Check("capacity", "ok", f"{counted(trials, 'trial')} at a time")


def _inspect_nodes(nodes: Mapping[str, Any], config: UnlearnConfig | None, storage: str | None) -> list[Check]:
    """Send a task to every node. Each node writes a probe file to the shared folders, which is then read here."""
    shared = {"storage": storage} if storage else {}
    if config is not None and len(nodes) > 1:
        # Prepared models are there, and the trials of every node load them.
        shared["cache_dir"] = str(cache_root(config.cache_dir))
    inspect = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(checks.inspect_node)
    found: list[Check] = []
    with _probe_folders(shared) as (probes, failed):
        tasks = {
            node_id: inspect.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(
                NodeRequest(
                    node_id,
                    checks.versions(),
                    gpus=int(node["Resources"].get("GPU", 0)),
                    probes=probes,
                    config=_mapping(config),
                )
            )
            for node_id, node in nodes.items()
        }
        hosts = {node_id: node["NodeManagerHostname"] for node_id, node in nodes.items()}
        for node_id, task in tasks.items():
            found += _node_result(task, hosts[node_id])
        found += failed or _compare_probes(probes, hosts)
    return found


def _node_result(task: Any, host: str) -> list[Check]:
    try:
        result: list[Check] = ray.get(task, timeout=_NODE_SECONDS)
        return result
    except GetTimeoutError:
        return [Check("node", "fail", f"no answer in {_NODE_SECONDS:.0f} s", "read its raylet's log", host)]
    except (RayError, RuntimeError, ImportError) as error:
        return [Check("node", "fail", f"cannot run ofmu ({_last_line(error)})", _INSTALL, host)]


@contextmanager
def _probe_folders(shared: Mapping[str, str]) -> Iterator[tuple[dict[str, str], list[Check]]]:
    """Make a folder in each shared folder and write the driver's probe file there. Delete at the end what was made.

    Yield the folders by name of the shared folder, and the failed checks of folders that cannot be written.
    """
    probes: dict[str, str] = {}
    failed: list[Check] = []
    made = [folder for location in shared.values() for folder in _missing_folders(location)]
    for name, location in shared.items():
        folder = join_uri(location, f"{_PROBE_FOLDER}{uuid.uuid4().hex[:12]}")
        try:
            checks.write_probe(folder, checks.DRIVER)
        except (OSError, ValueError) as error:
            fix = "name a folder, or a URI such as s3://bucket/path, that can be written from every node"
            detail = f"{redacted(location)} cannot be written from here ({short_reason(error)})"
            failed.append(Check(name, "fail", detail, fix))
        else:
            probes[name] = folder
    try:
        yield probes, failed
    finally:
        for folder in probes.values():
            system, path = storage_at(folder)
            system.delete_dir(path)
        for missing in made:
            with suppress(OSError):  # another program may have written there
                missing.rmdir()


def _missing_folders(location: str) -> list[Path]:
    """Return the folders of a local path that do not exist, the innermost first."""
    if is_uri(location):
        return []
    path = Path(location).absolute()
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def _compare_probes(probes: Mapping[str, str], hosts: Mapping[str, str]) -> list[Check]:
    """Read here the probe file that each node has written.

    Args:
        probes: folder of the probe files, by name of the shared folder.
        hosts: host name, by name of the node's probe file.
    """
    found: list[Check] = []
    for name, folder in probes.items():
        location = redacted(folder).partition(f"/{_PROBE_FOLDER}")[0]
        fix = f"mount the storage of {location} on every node, at the same path"
        unseen = [host for node, host in hosts.items() if not _is_readable(folder, node)]
        found += [
            Check(name, "fail", f"what is written to {location} there is not seen here", fix, host) for host in unseen
        ]
        if not unseen:
            found.append(Check(name, "ok", f"{location}: what every node writes is read here"))
    return found


def _is_readable(folder: str, name: str) -> bool:
    try:
        return checks.read_probe(folder, name)
    except (OSError, ValueError):
        return False


def _all_reduce_over_nodes(nodes: Mapping[str, Any]) -> Check:
    """All-reduce with gloo: one rank on every node, or two ranks if there is one node."""
    ranks = list(nodes) if len(nodes) > 1 else list(nodes) * 2
    return _all_reduce_in_tasks("gloo", [NodeAffinitySchedulingStrategy(node, soft=False) for node in ranks])


def _all_reduce_over_gpus(gpus: int, backend: str = "nccl") -> Check:
    """All-reduce with one rank on every GPU. Trials that already run are not disturbed."""
    group = placement_group([{"GPU": 1}] * gpus)
    try:
        if not group.wait(_GPU_WAIT_SECONDS):
            fix = "run the doctor again when the cluster is idle"
            return Check(backend, "warn", f"not tried, since some of the {gpus} GPUs are in use", fix)
        strategies = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i) for i in range(gpus)]
        return _all_reduce_in_tasks(backend, strategies, num_gpus=1)
    finally:
        remove_placement_group(group)


def _all_reduce_in_tasks(backend: str, strategies: Sequence[Any], num_gpus: float = 0) -> Check:
    """All-reduce with one Ray task per rank."""
    address_task = ray.remote(num_cpus=0, num_gpus=0, max_retries=0)(checks.free_address)
    rank_task = ray.remote(num_cpus=0, num_gpus=num_gpus, max_retries=0, max_calls=1)(checks.all_reduce)
    world = len(strategies)

    def run() -> list[float]:
        first = address_task.options(scheduling_strategy=strategies[0])
        address = ray.get(first.remote(), timeout=_GROUP_SECONDS)
        tasks = [
            rank_task.options(scheduling_strategy=strategy).remote(rank, world, address, backend, _GROUP_SECONDS)
            for rank, strategy in enumerate(strategies)
        ]
        sums: list[float] = ray.get(tasks, timeout=2 * _GROUP_SECONDS)
        return sums

    return _check_all_reduce(backend, world, run)


def _all_reduce_here(backend: str, ranks: int) -> Check:
    """All-reduce with one process per rank on this machine."""

    def run() -> list[float]:
        join = partial(
            checks.all_reduce, world_size=ranks, address=checks.free_address(), backend=backend, seconds=_GROUP_SECONDS
        )
        with _pool(ranks) as pool:
            return list(pool.map(join, range(ranks), timeout=2 * _GROUP_SECONDS))

    return _check_all_reduce(backend, ranks, run)


def _check_all_reduce(backend: str, world: int, run: Callable[[], list[float]]) -> Check:
    """Compare the sums that the ranks return with the closed form of 1 + … + world."""
    fix = (
        "open the nodes' ports to each other and let their host names resolve"
        if backend == "gloo"
        else "check nvidia-smi on each node and run with NCCL_DEBUG=INFO; NCCL_SOCKET_IFNAME picks the network"
    )
    try:
        sums = run()
    except (RayError, OSError, RuntimeError, TimeoutError) as error:
        return Check(backend, "fail", f"all-reduce failed ({_last_line(error)[:160]})", fix)
    expected = world * (world + 1) / 2
    if any(each != expected for each in sums):
        return Check(backend, "fail", f"all-reduce over {world} ranks gave {sums}, not {expected:g}", fix)
    return Check(backend, "ok", f"all-reduce over {world} ranks")


def _last_line(error: BaseException) -> str:
    """Return the last line of a message. In an error of a Ray task this line names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else str(error)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _mapping(config: UnlearnConfig | None) -> Mapping[str, Any] | None:
    return None if config is None else config.model_dump(mode="json")
