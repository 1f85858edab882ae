from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ofmu.engine.build import build_engine, resolve_device, weight_sharder
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.errors import ConfigError
from ofmu.testing import tiny_classifier

FLAGS = (torch.backends.cuda.matmul, torch.backends.cudnn)


def test_one_process_runs_on_pytorch_unless_masters_are_moved_to_the_host() -> None:
    assert EngineConfig().backend_on(1) == "torch"
    assert EngineConfig(precision="bf16").backend_on(1) == "torch"
    assert EngineConfig(offload="cpu").backend_on(1) == "deepspeed"
    assert EngineConfig(precision="bf16").backend_on(2) == "deepspeed"
    assert EngineConfig(backend="deepspeed").backend_on(1) == "deepspeed"


def test_gradients_in_bf16_are_for_one_process() -> None:
    config = EngineConfig(precision="bf16", gradient_precision="bf16", device="cpu", threads=1)
    config.check_ranks(1)
    with pytest.raises(ConfigError, match=r"this run has 2 ranks.*set engine.gradient_precision to 'fp32'") as caught:
        config.check_ranks(2)
    assert "\n" not in str(caught.value)
    engine = build_engine(tiny_classifier(), config, CostTracker())
    assert engine.space.gradient_zeros()[0].dtype == torch.bfloat16
    assert engine.space.zeros()[0].dtype == torch.float32


@pytest.mark.usefixtures("second_of_two")
def test_the_torch_backend_is_for_one_process() -> None:
    config = EngineConfig(backend="torch", device="cpu", threads=1)
    config.check_ranks(1)
    sentence = r"^engine\.backend 'torch' is for one process, and this run has 2 ranks: set engine\.backend to 'auto'"
    with pytest.raises(ConfigError, match=sentence):
        config.check_ranks(2)
    with pytest.raises(ConfigError, match=sentence):
        build_engine(tiny_classifier(), config, CostTracker())
    with pytest.raises(ConfigError, match=sentence):
        weight_sharder(config)


def test_frozen_weights_are_rounded_before_they_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_classifier()
    frozen, trained = list(model.parameters())[:2]
    frozen.requires_grad_(False)
    expected, moved, move = frozen.detach().to(torch.bfloat16), [], model.to

    def to(device: torch.device) -> torch.nn.Module:
        moved.append((frozen.dtype, trained.dtype))
        return move(device)

    monkeypatch.setattr(model, "to", to)
    build_engine(model, EngineConfig(precision="bf16", device="cpu", threads=1), CostTracker())
    assert moved == [(torch.bfloat16, torch.float32)]
    assert torch.equal(frozen, expected)


@pytest.fixture
def _tf32_on() -> Iterator[None]:
    before = [flags.allow_tf32 for flags in FLAGS]
    for flags in FLAGS:
        flags.allow_tf32 = True
    yield
    for flags, value in zip(FLAGS, before, strict=True):
        flags.allow_tf32 = value


@pytest.mark.usefixtures("_tf32_on")
def test_whoever_asks_for_the_device_computes_without_tf32() -> None:
    # The scores of a reference are computed before any engine is built, and must not depend on whether one was.
    assert resolve_device(EngineConfig(device="cpu")) == torch.device("cpu")
    assert [flags.allow_tf32 for flags in FLAGS] == [False, False]
