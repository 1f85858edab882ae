"""DeepSpeed runs on the device of the config, whatever it took before."""

from __future__ import annotations

import pytest

from ofmu.engine.build import build_engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.losses import AnswerLoss
from ofmu.testing import tiny_llama, tiny_rows


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_run_on_the_cpu_works_after_deepspeed_took_a_gpu(stage: int) -> None:
    from deepspeed.accelerator import get_accelerator, real_accelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    real_accelerator.set_accelerator(CUDA_Accelerator())
    config = EngineConfig(backend="deepspeed", zero_stage=stage, device="cpu")
    engine = build_engine(tiny_llama("eager"), config, CostTracker())
    try:
        value, _ = engine.gradient(AnswerLoss(0), tiny_rows(3, 1))
    finally:
        engine.close()
    assert get_accelerator().device_name() == "cpu"
    assert value == pytest.approx(
        TorchEngine(tiny_llama("eager"), CostTracker()).gradient(AnswerLoss(0), tiny_rows(3, 1))[0]
    )
