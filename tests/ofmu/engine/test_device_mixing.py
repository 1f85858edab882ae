"""No tensor is left on the CPU when the model is on another device: the meta device stands for a GPU."""

from __future__ import annotations

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


def check_one_device(kind: TaskKind, name: str, settings: dict[str, Any]) -> None:
    """Take one round of a method on a model on the meta device."""
    # With rates of its own the run needs no range test, whose search reads values.
    ofmu = {"outer_steps": 1, "inner_steps": 1, "inner_lr": 0.05, "outer_lr": 1e-3}
    short = ofmu if name == "ofmu" else {"steps": 1} if name != "influence" else {}
    method = small_spec(name, kind=kind, settings={"batch_size": 2} | short | settings).method
    model: Any = tiny_llama("eager" if method.needs_double_backward else "sdpa")
    task: Any = tiny_language_task()
    if kind == "vision":
        model, task = tiny_classifier(), tiny_image_task()
    engine = TorchEngine(model.to(DEVICE).train(), CostTracker(), micro_batch_size=1)
    assert engine.device == DEVICE
    with OneDevice():
        assert list(build_method(Context(engine, task, 0), method).rounds())


OPEN = {"similarity_threshold": -1.0}
LANGUAGE: list[tuple[str, dict[str, Any]]] = [
    ("ofmu", OPEN),
    ("ofmu", OPEN | {"derivative": "exact"}),
    # A fit of a step would try all steps, since what is read from the device never changes.
    ("ofmu", OPEN | {"derivative": "reverse_over_forward", "penalty_weight": 0.0}),
    ("ofmu", OPEN | {"derivative": "reverse_over_forward", "decorrelation": "projection", "inner_update": "adamw"}),
    ("simnpo", {}),
    ("npo", {}),
    ("rmu", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), LANGUAGE)
def test_a_method_on_text_mixes_no_devices(name: str, settings: dict[str, Any]) -> None:
    check_one_device("language", name, settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune", "boundaryexpand", "randomlabels"])
def test_a_method_on_images_mixes_no_devices(name: str) -> None:
    check_one_device("vision", name, {})


def test_a_tensor_on_the_other_device_is_found() -> None:
    with OneDevice(), pytest.raises(AssertionError, match="reads tensors of"):
        torch.ones(2, device=DEVICE) + torch.ones(2)
