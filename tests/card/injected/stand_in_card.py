"""The Python half of the stand-in: what ``torch.cuda`` and NCCL's process group do in the CUDA build.

Environment variables: ``STAND_IN_CARD_LIBRARY`` (the compiled library), ``STAND_IN_CARDS`` (how many, 1),
``STAND_IN_CARD_BYTES`` (memory of each, 16 GiB). ``CUDA_VISIBLE_DEVICES`` counts as it does for real cards.
"""

from __future__ import annotations

import importlib.util
import os
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

NAME = "stand-in card"


def install() -> None:
    """Make ``torch.cuda`` show the cards."""
    spec = importlib.util.spec_from_file_location("card", os.environ["STAND_IN_CARD_LIBRARY"])
    assert spec is not None
    assert spec.loader is not None
    card: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(card)
    ids = [str(index) for index in range(int(os.environ.get("STAND_IN_CARDS", "1")))]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        ids = [name for name in visible.split(",") if name in ids]
    total = int(os.environ.get("STAND_IN_CARD_BYTES", str(16 * 2**30)))
    card.set_cards(max(len(ids), 1))
    card.set_capacity(total)
    cuda: Any = torch.cuda
    _set(cuda, _devices(card, ids, total) | _memory(card, total) | _randomness(card, len(ids)))
    _set(torch.cuda.random, _randomness(card, len(ids)))
    _set(cuda, _streams(card))
    _set(torch.cuda.nvtx, dict.fromkeys(("range_push", "range_pop", "mark"), _nothing))
    _set(torch.version, {"cuda": "stand-in"})
    _set(torch._C, {"_cuda_getCurrentRawStream": lambda index: 0})
    _set(torch.Tensor, {"record_stream": _nothing})
    _add_storages()
    _add_nccl(card)


def _set(module: Any, functions: dict[str, Any]) -> None:
    for name, function in functions.items():
        setattr(module, name, function)


def _nothing(*arguments: Any, **keywords: Any) -> None:
    pass


def _index(card: Any, device: Any = None) -> int:
    if device is None:
        return int(card.current())
    index = device if isinstance(device, int) else torch.device(device).index
    return int(card.current()) if index is None else index


def _devices(card: Any, ids: list[str], total: int) -> dict[str, Any]:
    state: Any = torch.cuda

    def initialize() -> None:
        state._initialized = True
        state.default_generators = tuple(card.default_generator(index) for index in range(len(ids)))

    def properties(device: Any = None) -> Any:
        uuid = f"card-{ids[_index(card, device)]}"
        return types.SimpleNamespace(
            name=NAME, major=9, minor=0, total_memory=total, multi_processor_count=1, uuid=uuid
        )

    def exchange(index: int) -> int:
        before = int(card.current())
        if index >= 0:
            card.set_current(index)
        return before

    def current() -> int:
        initialize()
        return int(card.current())

    return {
        "_lazy_init": initialize,
        "init": initialize,
        "_is_compiled": lambda: True,
        "is_initialized": lambda: state._initialized,
        "is_available": lambda: bool(ids),
        "device_count": lambda: len(ids),
        "current_device": current,
        "set_device": lambda device: card.set_current(_index(card, device)),
        "synchronize": lambda device=None: initialize(),
        "get_device_properties": properties,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_arch_list": lambda: ["sm_90"],
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: False,
        "ipc_collect": _nothing,
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
    }


def _memory(card: Any, total: int) -> dict[str, Any]:
    def set_fraction(fraction: float, device: Any = None) -> None:
        card.set_capacity(int(total * fraction))

    now, peak, reset = (lambda device=None, ask=ask: ask() for ask in (card.allocated, card.peak, card.reset_peak))
    counts = {"allocated_bytes.all.current": card.allocated, "allocated_bytes.all.peak": card.peak}
    return {
        **dict.fromkeys(("memory_allocated", "memory_reserved", "memory_cached"), now),
        **dict.fromkeys(("max_memory_allocated", "max_memory_reserved", "max_memory_cached"), peak),
        **dict.fromkeys(("reset_peak_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached"), reset),
        "memory_stats": lambda device=None: {name: ask() for name, ask in counts.items()},
        "mem_get_info": lambda device=None: (total - card.allocated(), total),
        "empty_cache": _nothing,
        "set_per_process_memory_fraction": set_fraction,
    }


def _randomness(card: Any, count: int) -> dict[str, Any]:
    def generator(device: Any = "cuda") -> torch.Generator:
        made: torch.Generator = card.default_generator(_index(card, device))
        return made

    def seed_all(seed: int) -> None:
        for index in range(count):
            generator(index).manual_seed(seed)

    def set_all(states: Any) -> None:
        for index, state in enumerate(states):
            generator(index).set_state(state)

    return {
        "manual_seed": seed_all,
        "manual_seed_all": seed_all,
        "initial_seed": lambda: generator().initial_seed(),
        "get_rng_state": lambda device="cuda": generator(device).get_state(),
        "set_rng_state": lambda state, device="cuda": generator(device).set_state(state),
        "get_rng_state_all": lambda: [generator(index).get_state() for index in range(count)],
        "set_rng_state_all": set_all,
    }


def _streams(card: Any) -> dict[str, Any]:
    """Everything is done when it is asked for, so there is nothing to wait for."""

    class Stream:
        cuda_stream = stream_id = 0
        device_type = 1

        def __init__(self, device: Any = None, priority: int = 0) -> None:
            self.device_index = _index(card, device)
            self.device = torch.device("cuda", self.device_index)

        synchronize = wait_stream = wait_event = _nothing

        def query(self) -> bool:
            return True

        def record_event(self, event: Any = None) -> Any:
            return Event() if event is None else event

        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *arguments: object) -> None:
            pass

    class Event:
        def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
            self._time = 0.0

        wait = synchronize = _nothing

        def record(self, stream: Any = None) -> None:
            self._time = time.perf_counter()

        def query(self) -> bool:
            return True

        def elapsed_time(self, other: Event) -> float:
            return 1000 * (other._time - self._time)

    made: dict[int, Stream] = {}

    def current(device: Any = None) -> Stream:
        return made.setdefault(_index(card, device), Stream(device))

    @contextmanager
    def use(stream: Any) -> Iterator[Any]:
        yield stream

    return {
        "Stream": Stream,
        "Event": Event,
        "current_stream": current,
        "default_stream": current,
        "stream": use,
        "set_stream": _nothing,
    }


def _add_storages() -> None:
    """PyTorch's CPU build cannot make a storage on a card by itself."""

    def copied(self: Any, device: torch.device) -> Any:
        whole = torch.empty(0, dtype=torch.uint8, device=self.device).set_(self)
        return torch.empty(self.nbytes(), dtype=torch.uint8, device=device).copy_(whole).untyped_storage()

    def to(self: Any, device: Any, non_blocking: bool = False) -> Any:
        wanted = torch.device(device)
        return self if self.device.type == wanted.type else copied(self, wanted)

    functions = {
        "to": to,
        "cpu": lambda self: to(self, "cpu"),
        "cuda": lambda self, device=None, non_blocking=False: to(self, "cuda"),
        "clone": lambda self: copied(self, self.device),
    }
    _set(torch.UntypedStorage, functions)


def _add_nccl(card: Any) -> None:
    """Let the backend ``nccl`` be gloo over the cards' memory."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d

    class Options:
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            self._timeout = None
            self.is_high_priority_stream = False
            self.global_ranks_in_group: list[int] = []
            self.group_name = ""

    def init(self: Any, store: Any, rank: int, size: int, options: Any = None) -> None:
        gloo = distributed_c10d.ProcessGroupGloo(store, rank, size, timeout=timedelta(minutes=10))
        card.CardBackend.__init__(self, gloo, rank, size)

    body = {"__init__": init, "Options": Options, "_set_sequence_number_for_group": _nothing, "bound_device_id": None}
    made = type("ProcessGroupNCCL", (card.CardBackend,), body)
    state: Any = distributed_c10d
    state.ProcessGroupNCCL, state._NCCL_AVAILABLE = made, True
    state.default_pg_nccl_timeout = timedelta(minutes=10)
    for module in (dist, distributed_c10d):
        _set(module, {"is_nccl_available": lambda: True})
    _set(torch.cuda, {"nccl": types.SimpleNamespace(version=lambda: (2, 0, 0))})
