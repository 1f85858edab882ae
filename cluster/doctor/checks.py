"""The checks of one machine. They run in a process on that machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.storage.uri import short_reason, storage_at
from ofmu.errors import OfmuError
from ofmu.io.text import counted

if TYPE_CHECKING:
    from ofmu.run_config import UnlearnConfig

State = Literal["ok", "warn", "fail"]

DRIVER = "driver"
"""Name of the driver's probe file. A node that can read this file sees the same folder as the driver."""
_GIB = 2**30
_MIN_FREE_BYTES = 1 * _GIB
_RECOMMENDED_FREE_BYTES = 10 * _GIB
_MUST_MATCH = ("ray", "python")
_SHOULD_MATCH = ("ofmu", "torch", "deepspeed", "transformers", "optuna")
_HUB_SECONDS = 20


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    state: State
    detail: str
    """What the check found."""
    fix: str = ""
    """What to do, if the state is not ok."""
    host: str = ""
    """The node's host name, for a check that may differ between nodes."""

    @classmethod
    def failed(cls, name: str, error: OfmuError, default_fix: str) -> Check:
        """Return a failed check from an error's sentence. ``default_fix`` is for an error that names no fix."""
        detail, _, fix = str(error).rpartition(": ")
        return cls(name, "fail", detail, fix) if detail else cls(name, "fail", fix, default_fix)


@dataclass(frozen=True)
class NodeRequest:
    """What to check on a node."""

    node: str
    """A unique name for the node's probe files."""
    versions: Mapping[str, str]
    """The driver's :func:`versions`."""
    gpus: int | None = None
    """The number of GPUs that Ray counts on the node; None without Ray."""
    probes: Mapping[str, str] = field(default_factory=dict)
    """By name of a shared folder: the path or URI of the folder where the driver has written its probe file."""
    config: Mapping[str, Any] | None = None
    """JSON values of an UnlearnConfig, whose model and data are checked."""


def inspect_node(request: NodeRequest) -> list[Check]:
    """Check the machine that this process runs on."""
    # Ray hides the GPUs from a task that reserves none.
    if not os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip():
        del os.environ["CUDA_VISIBLE_DEVICES"]
    inspections: list[Callable[[NodeRequest], Iterator[Check]]] = [_versions, _gpus, _deepspeed, _disk, _probes]
    if request.config is not None:
        inspections += [_model, _data]
    host = socket.gethostname()
    return [replace(check, host=host) for inspect in inspections for check in inspect(request)]


def versions() -> dict[str, str]:
    """Return the versions that must be the same on all nodes of a cluster."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in ("ray", *_SHOULD_MATCH):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def all_reduce(rank: int, world_size: int, address: str, backend: str, seconds: float = 60.0) -> float:
    """Join a process group of ``world_size`` at ``address`` (host:port), sum rank + 1 over all ranks, and leave.

    Returns:
        The sum. The correct value is world_size·(world_size + 1)/2.

    Raises:
        RuntimeError: not all ranks join within ``seconds``, or the collective fails.
    """
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", rank % torch.cuda.device_count()) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend,
        init_method=f"tcp://{address}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=seconds),
    )
    try:
        values = torch.full((1024,), rank + 1.0, device=device)
        dist.all_reduce(values)
        return float(values.mean())
    finally:
        dist.destroy_process_group()


def free_address() -> str:
    """Return this node's address with a port that was free a moment ago."""
    import ray.util

    host = ray.util.get_node_ip_address() if ray.is_initialized() else "127.0.0.1"
    with socket.create_server(("", 0)) as server:
        return f"{host}:{server.getsockname()[1]}"


def write_probe(folder: str, name: str) -> None:
    """Write the probe file ``name``, whose content is its name. Raise OSError if the storage refuses."""
    system, path = storage_at(folder)
    system.create_dir(path, recursive=True)
    with system.open_output_stream(f"{path}/{name}") as stream:
        stream.write(name.encode())


def read_probe(folder: str, name: str) -> bool:
    """Return whether the probe file ``name`` is complete. Raise OSError if it cannot be read."""
    system, path = storage_at(folder)
    with system.open_input_stream(f"{path}/{name}") as stream:
        return bool(stream.read() == name.encode())


def visible_gpus() -> int:
    """Return how many GPUs torch sees in this process."""
    import torch

    return torch.cuda.device_count()


def _versions(request: NodeRequest) -> Iterator[Check]:
    here = versions()
    yield _compare("ray and python", "fail", _MUST_MATCH, here, request.versions)
    yield _compare("packages", "warn", _SHOULD_MATCH, here, request.versions)


def _compare(
    label: str, state: State, names: tuple[str, ...], here: Mapping[str, str], driver: Mapping[str, str]
) -> Check:
    different = [name for name in names if here[name] != driver[name]]
    if not different:
        return Check(label, "ok", ", ".join(f"{name} {here[name]}" for name in names))
    detail = ", ".join(f"{name} {here[name]} (driver: {driver[name]})" for name in different)
    return Check(label, state, detail, "install the same versions everywhere, from constraints.txt")


def _gpus(request: NodeRequest) -> Iterator[Check]:
    import torch

    seen = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    if not seen and (request.gpus or Path("/dev/nvidia0").exists()):
        fix = f"install a build of torch for the driver's CUDA (torch here: {torch.__version__})"
        yield Check("GPUs", "fail", "there are GPUs, and torch sees none", fix)
    elif request.gpus is not None and request.gpus != len(seen):
        fix = f"start Ray there with --num-gpus={len(seen)}"
        yield Check("GPUs", "warn", f"Ray counts {request.gpus}, torch sees {len(seen)}", fix)
    else:
        names = ", ".join(f"{gpu.name} ({gpu.total_memory / _GIB:.0f} GiB)" for gpu in seen)
        yield Check("GPUs", "ok", names or "none")


def _deepspeed(_: NodeRequest) -> Iterator[Check]:
    try:
        import torch

        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
        import deepspeed
        from deepspeed.ops.op_builder.all_ops import ALL_OPS

        compatible = deepspeed.ops.__compatible_ops__
        _zero_step()
    except Exception as error:
        # A broken installation may raise any exception, and this check has to report it.
        reason = " ".join(str(error).split()) or type(error).__name__
        yield Check("deepspeed", "fail", f"does not run: {reason[:200]}", "install it from constraints.txt")
        return
    builds = [name for name in ALL_OPS if compatible.get(name) and name != "deepspeed_not_implemented"]
    yield Check(
        "deepspeed", "ok", f"{deepspeed.__version__} takes a gradient at ZeRO stage 2; could build {', '.join(builds)}"
    )


def _zero_step() -> None:
    """Compute a gradient with the same engine that runs use, at ZeRO stage 2."""
    from transformers import LlamaConfig, LlamaForCausalLM

    # Imported here: these modules import torch.
    from ofmu.data.rows import Example
    from ofmu.engine.build import build_engine
    from ofmu.engine.config import EngineConfig
    from ofmu.engine.cost import CostTracker
    from ofmu.losses import AnswerLoss

    shape = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 8}
    model = LlamaForCausalLM(LlamaConfig(hidden_size=8, intermediate_size=8, **shape))
    engine = build_engine(model, EngineConfig(backend="deepspeed", zero_stage=2), CostTracker())
    try:
        engine.gradient(AnswerLoss(pad_id=0), [Example((1, 2, 3), answer_start=1)])
    finally:
        engine.close()


def _disk(_: NodeRequest) -> Iterator[Check]:
    # Imported here: every use of this module would otherwise need filelock.
    from ofmu.io.cache import cache_root

    folders = {"temporary files": Path(tempfile.gettempdir()), "prepared models": cache_root(None)}
    devices = set()
    for purpose, folder in folders.items():
        while not folder.exists():
            folder = folder.parent
        if folder.stat().st_dev in devices:
            continue
        devices.add(folder.stat().st_dev)
        free = shutil.disk_usage(folder).free
        state: State = "fail" if free < _MIN_FREE_BYTES else "warn" if free < _RECOMMENDED_FREE_BYTES else "ok"
        fix = "free some space: models and checkpoints take gigabytes" if state != "ok" else ""
        # Rounded down to tens of GiB, so that nodes of one kind share a row of the table.
        ten = _RECOMMENDED_FREE_BYTES
        amount = f"more than {free // ten * 10}" if state == "ok" else f"{free / _GIB:.1f}"
        yield Check("disk", state, f"{amount} GiB free for {purpose} ({folder})", fix)


def _probes(request: NodeRequest) -> Iterator[Check]:
    """Read the driver's probe file in every shared folder, and write this node's. Yield the failures."""
    for name, folder in request.probes.items():
        fix = "mount the same shared storage on every node, and let Ray's user write there"
        try:
            complete = read_probe(folder, DRIVER)
        except (OSError, ValueError) as error:
            yield Check(name, "fail", f"the driver's file is not seen here ({short_reason(error)})", fix)
            continue
        try:
            write_probe(folder, request.node)
        except (OSError, ValueError) as error:
            yield Check(name, "fail", f"cannot be written here ({short_reason(error)})", fix)
            continue
        if not complete:
            yield Check(name, "fail", "the driver's file is incomplete here", fix)


def _model(request: NodeRequest) -> Iterator[Check]:
    # Imported here: pydantic and the methods take a moment to import.
    from ofmu.run_config import UnlearnConfig

    config = UnlearnConfig.model_validate(request.config)
    names = {config.model.path: config.model.revision, config.model.base: None}
    if config.reference.source == "model":
        names[config.reference.path] = None
    for name, revision in names.items():
        if name is None:
            continue
        try:
            yield Check("model", "ok", _find_model(name, revision))
        except OfmuError as error:
            yield Check.failed("model", error, "correct the name")


def _find_model(name: str, revision: str | None) -> str:
    """Return where a model is. Its weights are not downloaded."""
    # Imported here: it imports transformers.
    from ofmu.models.hub import local_directory

    local = Path(name).exists() or Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if local:
        return f"{local_directory(name)}"
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return f"{name} is in the hub's cache"
    try:
        HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
    except Exception as error:
        # The hub's client raises errors of several libraries.
        raise OfmuError(
            f"The hub does not give '{name}' ({short_reason(error)}): check name, connection and HF_TOKEN, or name a "
            "directory on shared storage"
        ) from error
    return f"{name} is on the hub"


def _data(request: NodeRequest) -> Iterator[Check]:
    # Imported here: pydantic and the methods take a moment to import.
    from ofmu.run_config import UnlearnConfig

    config = UnlearnConfig.model_validate(request.config)
    try:
        forget, retain = _row_counts(config)
    except OfmuError as error:
        yield Check.failed("data", error, "correct the data section")
        return
    yield Check("data", "ok", f"{config.data.source}: {counted(forget, 'row')} to forget, {retain} to retain")


def _row_counts(config: UnlearnConfig) -> tuple[int, int]:
    # Imported here: task families import torch.
    from ofmu.tasks.load import task_family

    family = task_family(config.data.kind)
    return family.row_counts(family.load_data(config))
