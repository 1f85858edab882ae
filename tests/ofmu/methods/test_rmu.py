"""RMU's losses and gradients against hidden states caught by a hook on the block, one row at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from independent import assert_close, flat, gradient_of, nudge, started
from method_run import small_settings, tiny_task
from ofmu.data.rows import Example
from ofmu.engine.build import build_engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.errors import ConfigError
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.methods.rmu import RmuConfig, block_index
from trajectory import tiny_llama

ROWS = tiny_task().forget_rows[:5]


def block_output(model: Any, row: Example, block: int) -> Tensor:
    """Return the block's output at the answer's tokens, as a hook on it sees it."""
    caught: list[Tensor] = []
    handle = model.model.layers[block].register_forward_hook(
        lambda module, inputs, output: caught.append(output[0] if isinstance(output, tuple) else output)
    )
    model(input_ids=torch.tensor([row.input_ids]))
    handle.remove()
    return caught[0].reshape(len(row.input_ids), -1)[row.answer_start :]


def test_the_steering_vector_is_drawn_from_the_seed_and_has_the_coefficients_norm() -> None:
    method, _, _ = started("rmu", coefficient=6.5)
    assert float(method.goal.norm()) == pytest.approx(6.5, rel=1e-6)
    assert bool((method.goal >= 0).all())
    assert method.goal.unique().numel() == method.goal.numel() == 32
    again, _, _ = started("rmu", coefficient=13.0)
    torch.testing.assert_close(again.goal, 2 * method.goal)


def test_forget_loss_is_the_mean_squared_distance_to_the_steering_vector() -> None:
    method, model, _ = started("rmu", coefficient=3.0)
    goal = method.goal.double()
    per_row = [((block_output(model, row, 0) - goal) ** 2).sum() / (32 * row.answer_length) for row in ROWS]
    expected = torch.stack(per_row).mean()
    value, vector = method.engine.gradient(method.forget_loss(ROWS), ROWS)
    assert value == pytest.approx(expected.item(), rel=1e-10)
    assert_close(vector[0], gradient_of(expected, model))


def test_retain_loss_holds_the_states_of_the_start_model() -> None:
    method, model, start = started("rmu")
    value, vector = method.engine.gradient(method.retain_loss(ROWS), ROWS)
    assert value == 0
    assert float(vector[0].norm()) == 0
    nudge(model)
    moved = flat(model)
    per_row = []
    for row in ROWS:
        apart = block_output(model, row, 0) - block_output(start, row, 0).detach()
        per_row.append((apart**2).sum() / (32 * row.answer_length))
    expected = torch.stack(per_row).mean()
    value, vector = method.engine.gradient(method.retain_loss(ROWS), ROWS)
    assert value == pytest.approx(expected.item(), rel=1e-10)
    assert_close(vector[0], gradient_of(expected, model))
    assert torch.equal(flat(model), moved)


def test_parameters_behind_the_block_never_move() -> None:
    method, model, start = started("rmu", layer=0)
    list(method.rounds())
    moved = {
        name
        for (name, now), before in zip(model.named_parameters(), start.parameters(), strict=True)
        if not torch.equal(now, before)
    }
    assert "model.layers.0.mlp.down_proj.weight" in moved
    assert "model.embed_tokens.weight" in moved
    assert not any(name.startswith(("model.layers.1", "lm_head", "model.norm")) for name in moved)


@pytest.mark.parametrize(
    "settings",
    [{"zero_stage": stage} for stage in range(4)]
    + [{"zero_stage": stage, "offload": "cpu", "micro_batch_size": 2} for stage in (1, 2, 3)],
    ids=str,
)
def test_a_gradient_that_ends_at_the_block_keeps_nothing_of_the_last_full_one(settings: dict[str, Any]) -> None:
    """DeepSpeed leaves the buffers alone of parameters that a loss does not reach."""
    found = {}
    for name, engine_settings in (("alone", {"backend": "torch"}), ("deepspeed", settings)):
        engine = build_engine(tiny_llama(), EngineConfig(**engine_settings), CostTracker())
        method: Any = build_method(Context(engine, tiny_task(), seed=5), small_settings("rmu"))
        engine.gradient(method.task.loss, ROWS)
        found[name] = engine.space.gather(engine.gradient(method.forget_loss(ROWS), ROWS)[1])
        found[name] = {key: tensor.clone() for key, tensor in found[name].items()}
        engine.close()
    for key, tensor in found["alone"].items():
        torch.testing.assert_close(found["deepspeed"][key], tensor, rtol=1e-4, atol=1e-7, msg=key)
    assert float(found["deepspeed"]["lm_head.weight"].norm()) == 0


def test_the_block_is_an_index_or_a_share_of_the_depth() -> None:
    shares = {(0.5, 2): 0, (0.5, 16): 7, (0.25, 32): 7, (0.01, 4): 0, (1.0, 4): 3}
    assert {given: block_index(*given) for given in shares} == shares
    assert block_index(7, 32) == 7
    assert isinstance(RmuConfig.model_validate({"layer": 7}).layer, int)
    assert isinstance(RmuConfig.model_validate({"layer": 1.0}).layer, float)
    with pytest.raises(ConfigError, match="layer 9 does not exist in a model of 4 blocks"):
        block_index(9, 4)
