"""No tensor is left on the CPU when the model is on another device: the meta device stands for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ofmu.data.kinds import TaskKind
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.testing import small_spec, tiny_classifier, tiny_image_task, tiny_language_task, tiny_llama

DEVICE = torch.device("meta")
COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class OneDevice(TorchDispatchMode):
    """Fails where an operation reads tensors of both devices, as CUDA does.

    A tensor of the meta device has no values. What is read from it on the host is a fixed value.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device == DEVICE:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.5 if dtype.is_floating_point else 1
        if func is torch.ops.aten._to_copy.default and args[0].device == DEVICE:
            if kwargs.get("device", DEVICE) != DEVICE:
                return torch.full(args[0].shape, 1.5, dtype=kwargs.get("dtype") or args[0].dtype)
        elif func not in COPIES:
            devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim}
            assert len(devices) < 2, f"{func} reads tensors of {devices}"
        return func(*args, **kwargs)


@contextmanager
def on_the_device(kind: TaskKind, *, double_backward: bool = False) -> Iterator[Context[Any]]:
    model: Any = tiny_classifier() if kind == "vision" else tiny_llama("eager" if double_backward else "sdpa")
    task: Any = tiny_image_task() if kind == "vision" else tiny_language_task()
    engine = TorchEngine(model.to(DEVICE).train(), CostTracker(), micro_batch_size=2)
    assert engine.device == DEVICE
    with OneDevice():
        yield Context(engine, task, 0)


OFMU = {"outer_steps": 2, "similarity_threshold": -1.0}
LANGUAGE: list[tuple[str, dict[str, Any]]] = [
    ("ofmu", OFMU),
    ("ofmu", OFMU | {"derivative": "exact"}),
    ("ofmu", OFMU | {"derivative": "reverse_over_forward"}),
    ("ofmu", OFMU | {"decorrelation": "projection", "inner_update": "adamw"}),
] + [
    (name, {})
    for name in (
        "finetune",
        "gradascent",
        "graddiff",
        "influence",
        "l1sparse",
        "npo",
        "rmu",
        "simnpo",
        "dpo",
        "idk",
        "klmin",
        "pdu",
        "randomlabels",
        "salun",
        "satimp",
        "undial",
        "wga",
        "ceu",
        "blur",
    )
]
VISION = ["finetune", "l1sparse", "boundaryexpand", "boundaryshrink", "randomlabels", "salun", "ofmu"]


@pytest.mark.parametrize(("name", "settings"), LANGUAGE)
def test_a_method_on_text_mixes_no_devices(name: str, settings: dict[str, Any]) -> None:
    spec = small_spec(name, settings=settings)
    with on_the_device("language", double_backward=spec.method.needs_double_backward) as context:
        assert list(build_method(context, spec.method).rounds())


@pytest.mark.parametrize("name", VISION)
def test_a_method_on_images_mixes_no_devices(name: str) -> None:
    with on_the_device("vision") as context:
        assert list(build_method(context, small_spec(name, kind="vision").method).rounds())
