"""What one machine must have for a search, looked at by a process that runs on it."""

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

from cluster.storage.mirror import reason_of, storage_at
from ofmu.errors import OfmuError

if TYPE_CHECKING:
    from ofmu.run_config import UnlearnConfig

State = Literal["ok", "warn", "fail"]

DRIVER = "driver"
"""Name of the file by which the nodes know that a folder is the one that the driver sees."""
_GIB = 2**30
_LEAST_FREE = 1 * _GIB
_WISHED_FREE = 10 * _GIB
_MUST_MATCH = ("ray", "python")
_SHOULD_MATCH = ("ofmu", "torch", "deepspeed", "transformers", "optuna")
_HUB_SECONDS = 20


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    mend: str = ""
    """What to do, where the state is not ok."""
    where: str = ""
    """The node's host, for what may differ by node."""


@dataclass(frozen=True)
class NodeRequest:
    """What the process on a node is asked to look at."""

    node: str
    """A name for the node's own marks that no other node has."""
    versions: Mapping[str, str]
    """The driver's :func:`versions`."""
    gpus: int | None = None
    """GPUs that Ray counts there; None: there is no Ray to ask."""
    marks: Mapping[str, str] = field(default_factory=dict)
    """Name of a shared folder to its path or URI, where the driver has left its mark."""
    config: Mapping[str, Any] | None = None
    """An UnlearnConfig as a mapping, whose model and data are looked for."""


def inspect_node(request: NodeRequest) -> list[Check]:
    """Look at the machine that this process runs on."""
    # Ray hides the GPUs from a task that reserves none
    if not os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip():
        del os.environ["CUDA_VISIBLE_DEVICES"]
    looks: list[Callable[[NodeRequest], Iterator[Check]]] = [_versions, _gpus, _deepspeed, _disk, _marks]
    if request.config is not None:
        looks += [_model, _data]
    host = socket.gethostname()
    return [replace(check, where=host) for look in looks for check in look(request)]


def versions() -> dict[str, str]:
    """Return the versions here that have to be the same on all nodes of a cluster."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in ("ray", *_SHOULD_MATCH):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def all_reduce(rank: int, world_size: int, address: str, backend: str, seconds: float = 60.0) -> float:
    """Join a group of ``world_size`` processes at ``address`` (host:port), add up rank + 1 over it, and leave it.

    Returns:
        The sum, which is right if it equals world_size·(world_size + 1)/2.

    Raises:
        RuntimeError: the group does not come together or the collective fails.
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


def write_mark(place: str, name: str) -> None:
    """Write the file ``name``, which holds its own name; raises OSError."""
    system, path = storage_at(place)
    system.create_dir(path, recursive=True)
    with system.open_output_stream(f"{path}/{name}") as stream:
        stream.write(name.encode())


def read_mark(place: str, name: str) -> bool:
    """Return whether the file ``name`` is there and whole; raises OSError."""
    system, path = storage_at(place)
    with system.open_input_stream(f"{path}/{name}") as stream:
        return bool(stream.read() == name.encode())


def visible_gpus() -> int:
    """Return how many GPUs torch sees from this process."""
    import torch

    return torch.cuda.device_count()


def _versions(request: NodeRequest) -> Iterator[Check]:
    here = versions()
    for names, state in ((_MUST_MATCH, "fail"), (_SHOULD_MATCH, "warn")):
        other = [name for name in names if here[name] != request.versions[name]]
        label = "ray and python" if state == "fail" else "packages"
        if other:
            differences = ", ".join(f"{name} {here[name]} (driver: {request.versions[name]})" for name in other)
            yield Check(label, state, differences, "install the same versions everywhere, from constraints.txt")  # type: ignore[arg-type]
        else:
            yield Check(label, "ok", ", ".join(f"{name} {here[name]}" for name in names))


def _gpus(request: NodeRequest) -> Iterator[Check]:
    import torch

    seen = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found = ", ".join(f"{each.name} ({each.total_memory / _GIB:.0f} GiB)" for each in seen) or "none"
    if not seen and (request.gpus or Path("/dev/nvidia0").exists()):
        mend = f"install a build of torch for the driver's CUDA (torch here: {torch.__version__})"
        yield Check("GPUs", "fail", "there are GPUs, and torch sees none", mend)
    elif request.gpus is not None and request.gpus != len(seen):
        mend = f"start Ray there with --num-gpus={len(seen)}"
        yield Check("GPUs", "warn", f"Ray counts {request.gpus}, torch sees {len(seen)}", mend)
    else:
        yield Check("GPUs", "ok", found)


def _deepspeed(_: NodeRequest) -> Iterator[Check]:
    try:
        import torch

        os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
        import deepspeed
        from deepspeed.ops.op_builder.all_ops import ALL_OPS

        compatible = deepspeed.ops.__compatible_ops__
        _zero_step()
    except Exception as error:
        # a broken install raises anything, and this is where it is found out
        reason = " ".join(str(error).split()) or type(error).__name__
        yield Check("deepspeed", "fail", f"does not run: {reason[:200]}", "install it from constraints.txt")
        return
    builds = [name for name in ALL_OPS if compatible.get(name) and name != "deepspeed_not_implemented"]
    yield Check(
        "deepspeed", "ok", f"{deepspeed.__version__} takes a gradient at ZeRO stage 2; could build {', '.join(builds)}"
    )


def _zero_step() -> None:
    """Build the engine that runs use, at stage 2, and take a gradient with it."""
    from transformers import LlamaConfig, LlamaForCausalLM

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
    from ofmu.io.cache import cache_root

    places = {"temporary files": Path(tempfile.gettempdir()), "prepared models": cache_root(None)}
    devices = set()
    for purpose, place in places.items():
        while not place.exists():
            place = place.parent
        if place.stat().st_dev in devices:
            continue
        devices.add(place.stat().st_dev)
        free = shutil.disk_usage(place).free
        state: State = "fail" if free < _LEAST_FREE else "warn" if free < _WISHED_FREE else "ok"
        mend = "free some space: models and checkpoints take gigabytes" if state != "ok" else ""
        # in steps of ten, so that nodes of a kind share a row of the table
        amount = f"more than {free // _WISHED_FREE * 10}" if state == "ok" else f"{free / _GIB:.1f}"
        yield Check("disk", state, f"{amount} GiB free for {purpose} ({place})", mend)


def _marks(request: NodeRequest) -> Iterator[Check]:
    for name, place in request.marks.items():
        mend = "mount the same shared storage on every node, and let Ray's user write there"
        try:
            whole = read_mark(place, DRIVER)
        except (OSError, ValueError) as error:
            yield Check(name, "fail", f"the driver's file is not seen here ({reason_of(error)})", mend)
            continue
        try:
            write_mark(place, request.node)
        except (OSError, ValueError) as error:
            yield Check(name, "fail", f"cannot be written here ({reason_of(error)})", mend)
            continue
        if not whole:
            yield Check(name, "fail", "the driver's file is not whole here", mend)


def _model(request: NodeRequest) -> Iterator[Check]:
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
            sentence, _, mend = str(error).partition(": ")
            yield Check("model", "fail", sentence, mend or "correct the name")


def _find_model(name: str, revision: str | None) -> str:
    """Return where a model is; its weights are not downloaded."""
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
        # the hub's client raises errors of several libraries
        raise OfmuError(
            f"The hub does not give '{name}' ({reason_of(error)}): check name, connection and HF_TOKEN, or name a "
            "directory on shared storage"
        ) from error
    return f"{name} is on the hub"


def _data(request: NodeRequest) -> Iterator[Check]:
    from ofmu.run_config import UnlearnConfig

    config = UnlearnConfig.model_validate(request.config)
    try:
        forget, retain = _row_counts(config)
    except OfmuError as error:
        sentence, _, mend = str(error).partition(": ")
        yield Check("data", "fail", sentence, mend or "correct the data section")
        return
    yield Check("data", "ok", f"{config.data.source}: {forget} rows to forget, {retain} to retain")


def _row_counts(config: UnlearnConfig) -> tuple[int, int]:
    # Loaded here: task families import torch.
    from ofmu.tasks.load import task_family

    family = task_family(config.data.kind)
    return family.row_counts(family.load_data(config))
