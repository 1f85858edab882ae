"""RMU's losses and gradients, compared with hidden states from a hook on the block, one row at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from independent import assert_close, flat, gradient_of, make_method, perturb
from method_specs import short_spec
from ofmu.data.rows import Example
from ofmu.engine.build import build_engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.errors import ConfigError
from ofmu.methods.base import Context
from ofmu.methods.build import build_method
from ofmu.methods.rmu import RmuConfig, block_index
from ofmu.testing import tiny_language_task, tiny_llama

ROWS = tiny_language_task().forget_rows[:5]


def block_output(model: Any, row: Example, block: int) -> Tensor:
    """Return the output of the block at the answer tokens, which a hook on the block records."""
    outputs: list[Tensor] = []
    handle = model.model.layers[block].register_forward_hook(
        lambda module, inputs, output: outputs.append(output[0] if isinstance(output, tuple) else output)
    )
    model(input_ids=torch.tensor([row.input_ids]))
    handle.remove()
    return outputs[0].reshape(len(row.input_ids), -1)[row.answer_start :]


def test_the_seed_draws_the_steering_vector_and_the_coefficient_is_its_norm() -> None:
    method, _, _ = make_method("rmu", coefficient=6.5)
    assert float(method.steering_vector.norm()) == pytest.approx(6.5, rel=1e-6)
    assert bool((method.steering_vector >= 0).all())
    assert method.steering_vector.unique().numel() == method.steering_vector.numel() == 32
    again, _, _ = make_method("rmu", coefficient=13.0)
    torch.testing.assert_close(again.steering_vector, 2 * method.steering_vector)


def test_forget_loss_is_the_mean_squared_distance_to_the_steering_vector() -> None:
    method, model, _ = make_method("rmu", coefficient=3.0)
    c = method.steering_vector.double()
    per_row = [((block_output(model, row, 0) - c) ** 2).sum() / (32 * row.answer_length) for row in ROWS]
    expected = torch.stack(per_row).mean()
    value, vector = method.engine.gradient(method.forget_loss(ROWS), ROWS)
    assert value == pytest.approx(expected.item(), rel=1e-10)
    assert_close(vector[0], gradient_of(expected, model))


def test_retain_loss_is_the_mean_squared_distance_from_the_targets_states() -> None:
    method, model, target = make_method("rmu")
    value, vector = method.engine.gradient(method.retain_loss(ROWS), ROWS)
    assert value == 0
    assert float(vector[0].norm()) == 0
    perturb(model)
    moved = flat(model)
    per_row = []
    for row in ROWS:
        distance = block_output(model, row, 0) - block_output(target, row, 0).detach()
        per_row.append((distance**2).sum() / (32 * row.answer_length))
    expected = torch.stack(per_row).mean()
    value, vector = method.engine.gradient(method.retain_loss(ROWS), ROWS)
    assert value == pytest.approx(expected.item(), rel=1e-10)
    assert_close(vector[0], gradient_of(expected, model))
    assert torch.equal(flat(model), moved)


def test_parameters_behind_the_block_change_by_weight_decay_alone() -> None:
    rate, decay = 1e-3, 0.1
    method, model, target = make_method("rmu", layer=0, lr=rate, weight_decay=decay, steps=1)
    list(method.rounds())
    for (name, now), before in zip(model.named_parameters(), target.parameters(), strict=True):
        if name.startswith(("model.layers.1", "lm_head", "model.norm")):
            torch.testing.assert_close(now, before * (1 - rate * decay), rtol=1e-12, atol=0)


def test_parameters_behind_the_block_never_change_without_weight_decay() -> None:
    method, model, target = make_method("rmu", layer=0)
    list(method.rounds())
    moved = {
        name
        for (name, now), before in zip(model.named_parameters(), target.parameters(), strict=True)
        if not torch.equal(now, before)
    }
    assert "model.layers.0.mlp.down_proj.weight" in moved
    assert "model.embed_tokens.weight" in moved
    assert not any(name.startswith(("model.layers.1", "lm_head", "model.norm")) for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"zero_stage": stage} for stage in range(4)]
    + [{"zero_stage": stage, "offload": "cpu", "micro_batch_size": 2} for stage in (1, 2, 3)],
    ids=str,
)
def test_a_gradient_that_ends_at_the_block_is_zero_behind_it(settings: dict[str, Any]) -> None:
    """DeepSpeed does not overwrite the buffers of parameters that a loss does not depend on."""
    gradients = {}
    for name, engine_settings in (("torch", {"backend": "torch"}), ("deepspeed", settings)):
        engine = build_engine(tiny_llama(), EngineConfig(**{"backend": "deepspeed"} | engine_settings), CostTracker())
        method: Any = build_method(Context(engine, tiny_language_task(), seed=5), short_spec("rmu").method)
        engine.gradient(method.task.loss, ROWS)
        gradient = engine.space.gather(engine.gradient(method.forget_loss(ROWS), ROWS)[1])
        gradients[name] = {key: tensor.clone() for key, tensor in gradient.items()}
        engine.close()
    for key, tensor in gradients["torch"].items():
        torch.testing.assert_close(gradients["deepspeed"][key], tensor, rtol=1e-4, atol=1e-7, msg=key)
    assert float(gradients["deepspeed"]["lm_head.weight"].norm()) == 0


def test_the_block_is_an_index_or_a_share_of_the_depth() -> None:
    indices = {(0.5, 2): 0, (0.5, 16): 7, (0.25, 32): 7, (0.01, 4): 0, (1.0, 4): 3}
    assert {arguments: block_index(*arguments) for arguments in indices} == indices
    assert block_index(7, 32) == 7
    assert isinstance(RmuConfig.model_validate({"layer": 7}).layer, int)
    assert isinstance(RmuConfig.model_validate({"layer": 1.0}).layer, float)
    with pytest.raises(ConfigError, match="layer 9 does not exist in a model of 4 blocks"):
        block_index(9, 4)
