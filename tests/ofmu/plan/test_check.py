from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from ofmu.data.encoding import encode_prompt
from ofmu.data.load import load_data
from ofmu.errors import ConfigError, MemoryLimitError, ModelError
from ofmu.plan import budget, check
from ofmu.plan.check import check_fit, gib
from ofmu.plan.plan import _changes, make_plan
from ofmu.plan.workload import _texts
from ofmu.run_config import UnlearnConfig
from ofmu.trainer import unlearn

MIB = 2**20
SCRATCH = {"hidden_size": 128, "intermediate_size": 384, "num_layers": 4, "num_heads": 4, "vocab_size": 1024}


def config_of(mapping: dict[str, Any], **sections: Any) -> UnlearnConfig:
    return UnlearnConfig.model_validate({**mapping, **sections})


@pytest.fixture
def mapping(tiny_mapping: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_mapping, "model": {"scratch": SCRATCH}, "engine": {"device": "cpu"}}


def with_memory(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(check, "device_memory", lambda *, on_gpu: int(size))
    monkeypatch.setattr(check, "host_memory", lambda: int(size))


@pytest.mark.slow
def test_a_run_that_cannot_fit_is_refused_before_it_starts(mapping, tmp_path, monkeypatch):
    config = config_of(mapping)
    needed = make_plan(config, on_gpu=False).needed
    with_memory(monkeypatch, 0.9 * needed)
    with pytest.raises(MemoryLimitError, match=r"set .*=.*, which needs .* MiB; see ofmu plan") as caught:
        unlearn(config, tmp_path / "run")
    assert str(caught.value).count("\n") == 0
    assert not (tmp_path / "run").exists()
    with_memory(monkeypatch, 1.1 * needed)
    check_fit(config)


@pytest.mark.slow
def test_the_change_that_is_named_makes_the_run_fit(mapping, monkeypatch):
    config = config_of(mapping)
    plan = make_plan(config, on_gpu=False, budget=0.9 * make_plan(config, on_gpu=False).needed)
    change = plan.smallest_change()
    assert change is not None
    changed = config_of(mapping)
    sections: dict[str, Any] = changed.model_dump(mode="json")
    for entry in change.overrides:
        path, value = entry.split("=")
        section, key = path.split(".", 1)
        target = sections[section]
        *parts, last = key.split(".")
        for part in parts:
            target = target[part]
        target[last] = json.loads(value) if value[0] in "0123456789tf" else value
    with_memory(monkeypatch, 0.9 * plan.needed)
    check_fit(UnlearnConfig.model_validate(sections))
    smaller = [candidate for candidate in plan.candidates() if candidate.needed <= 0.9 * plan.needed]
    assert smaller[0] == change


@pytest.mark.slow
def test_moments_in_8_bits_are_a_change_that_a_plan_proposes(mapping):
    config = config_of(mapping)
    plan = make_plan(config, on_gpu=False, budget=1.0)
    proposed = {candidate.overrides: candidate.needed for candidate in plan.candidates()}
    names = ("inner_update", "outer_update") if config.method.name == "ofmu" else ("update",)
    assert proposed[tuple(f"method.{name}=adamw_8bit" for name in names)] < plan.needed
    for rule in ("adamw_8bit", "sgd"):
        rules = dict.fromkeys(names, rule)
        other = make_plan(config_of(mapping, method={**mapping["method"], **rules}), on_gpu=False)
        assert not any("8bit" in entry for candidate in other.candidates() for entry in candidate.overrides)


@pytest.mark.slow
def test_gradients_in_bf16_are_a_change_of_runs_in_bf16_alone(mapping):
    method, bf16 = {"name": "simnpo"}, {"device": "cpu", "precision": "bf16"}
    plain = make_plan(config_of(mapping, method=method, engine=bf16), on_gpu=False)
    short_config = config_of(mapping, method=method, engine={**bf16, "gradient_precision": "bf16"})
    short = make_plan(short_config, on_gpu=False)
    rounds = [phase.total for plan in (plain, short) for phase in plan.memory.phases if phase.name == "round"]
    # SimNPO holds one vector of gradients.
    assert rounds[0] - rounds[1] == 2 * plain.memory.trainable
    change = ("engine.gradient_precision=bf16",)
    assert change in _changes(plain.config, 1, on_gpu=False)
    fp32 = config_of(mapping, method=method)
    for config, ranks in ((short_config, 1), (fp32, 1), (plain.config, 2)):
        assert not any(change[0] in overrides for overrides in _changes(config, ranks, on_gpu=False))
    with pytest.raises(ConfigError, match="one process"):
        make_plan(short_config, ranks=2, on_gpu=False)


@pytest.mark.slow
def test_a_gpu_may_take_bf16_with_the_derivatives_that_it_needs(mapping):
    short = ("engine.precision=bf16", "method.derivative=exact", "engine.gradient_precision=bf16")
    assert short in _changes(config_of(mapping), 1, on_gpu=True)
    assert short[::2] in _changes(config_of(mapping, method={"variant": "first_order"}), 1, on_gpu=True)
    other = config_of(mapping, method={"name": "simnpo"})
    plan = make_plan(other, on_gpu=True, budget=1)
    (candidate,) = [each for each in plan.candidates() if each.overrides == short[::2]]
    assert candidate.needed < plan.needed
    # DeepSpeed's ranks have fp32 gradients.
    assert short[:1] in _changes(other, 2, on_gpu=True)
    assert not any(short[0] in overrides for overrides in _changes(other, 1, on_gpu=False))


@pytest.mark.slow
def test_what_no_change_can_fit_says_so(mapping, monkeypatch):
    with_memory(monkeypatch, 1 * MIB)
    with pytest.raises(MemoryLimitError, match="nor an adapter make it fit: take a smaller model"):
        check_fit(config_of(mapping))


def test_the_check_can_be_left_out_and_a_stored_config_does_not_change(mapping, monkeypatch):
    with_memory(monkeypatch, 1 * MIB)
    config = config_of(mapping, engine={"device": "cpu", "check_memory": False})
    check_fit(config)
    assert config.model_dump(mode="json")["engine"]["check_memory"] is False
    assert "check_memory" not in config_of(mapping).model_dump(mode="json")["engine"]


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size"])
def test_absurd_sizes_are_refused_at_once(mapping, key):
    # 10^12 is a multiple of the heads
    config = config_of(mapping, model={"scratch": {**SCRATCH, key: 10**12}})
    started = time.perf_counter()
    with pytest.raises(MemoryLimitError, match="neither the engine's settings"):
        check_fit(config)
    assert time.perf_counter() - started < 20  # Transformers is imported meanwhile


def test_absurd_sizes_of_a_saved_model_are_refused_too(mapping, tmp_path, monkeypatch):
    shape = {"model_type": "gpt2", "vocab_size": 10**12, "n_embd": 10**9, "n_layer": 10**9, "n_head": 8}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    (tmp_path / "model.safetensors").write_bytes(b"")
    model = {"path": str(tmp_path), "is_target": True}
    with pytest.raises(ModelError, match="has vocab_size"):
        check_fit(config_of(mapping, model=model, reference={"source": "none"}))


def test_a_small_run_is_waved_through_without_a_model(mapping, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the exact plan takes seconds, and this run is far below the memory")

    monkeypatch.setattr("ofmu.plan.plan.make_plan", fail)
    with_memory(monkeypatch, 10**12)
    check_fit(config_of(mapping))


@pytest.mark.slow
def test_more_ranks_share_the_machine_and_shard(mapping):
    config = config_of(mapping, engine={"backend": "deepspeed", "device": "cpu", "zero_stage": 2})
    rounds = [make_plan(config, ranks=ranks, on_gpu=False).memory.phases[2] for ranks in (1, 4)]
    one, four = (sum(part.size for part in phase.components) for phase in rounds)
    assert {phase.name for phase in rounds} == {"round"}
    assert four < 0.6 * one
    whole = config_of(mapping, engine={"device": "cpu", "zero_stage": 0})
    vectors = [make_plan(whole, ranks=ranks, on_gpu=False).memory.phases[2].components[2].size for ranks in (1, 4)]
    assert vectors[0] == vectors[1]


@pytest.mark.slow
def test_offload_moves_vectors_to_the_host_of_a_gpu(mapping):
    device, host = {}, {}
    for offload in ("none", "cpu"):
        config = config_of(mapping, engine={"backend": "deepspeed", "offload": offload, "zero_stage": 2})
        peak = make_plan(config, on_gpu=True).memory.phases[2]
        device[offload], host[offload] = peak.device, peak.host
    assert device["cpu"] < device["none"]
    on_gpu = {part.name: part.size for part in peak.components if not part.on_host}
    assert on_gpu["gradients"] > 0  # DeepSpeed's bucket stays on the GPU
    assert host["cpu"] > host["none"]


def test_images_have_no_plan(mapping):
    config = config_of({}, data={"source": "cifar10"}, method={"name": "finetune"})
    check_fit(config)
    with pytest.raises(ConfigError, match="images"):
        make_plan(config)


def test_a_container_s_limit_counts(tmp_path, monkeypatch):
    files = tuple(tmp_path / name for name in ("memory.max", "memory.stat", "memory.current"))
    files[0].write_text(f"{3 * 2**30}\n")
    files[1].write_text(f"anon 5\ninactive_file {2**30}\n")
    files[2].write_text(f"{2 * 2**30}\n")
    monkeypatch.setattr(budget, "_CGROUPS", (files,))
    monkeypatch.setattr(budget, "_available", lambda: 10 * 2**30)
    assert budget.host_memory() == 2 * 2**30
    files[0].write_text("max\n")
    assert budget.host_memory() == 10 * 2**30
    monkeypatch.setattr(budget, "_CGROUPS", ((Path("/none"), Path("/none"), Path("/none")),))
    assert budget.host_memory() == 10 * 2**30
    monkeypatch.undo()
    assert 0 < (budget.host_memory() or 0) < 2**50


def test_bytes_in_words():
    assert [gib(size) for size in (3 * MIB, 2.5 * 2**30, 850 * 2**30)] == ["3.0 MiB", "2.5 GiB", "850 GiB"]
    assert "e+" in gib(1e30)


def test_a_gpu_s_memory_is_the_card_s(mapping, monkeypatch):
    class Card:
        total_memory = 7 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Card)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert budget.device_memory(on_gpu=True) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert budget.device_memory(on_gpu=True) == 7 * 2**30


@pytest.mark.slow
def test_the_targets_logits_are_counted_where_a_loss_compares_with_them(mapping):
    """Two methods with the same vectors but θ_0: the round differs by θ_0 and by one tensor of logits."""
    found = {}
    for name in ("graddiff", "klmin"):
        config = config_of(mapping, method={"name": name, "batch_size": 4})
        phases = make_plan(config, ranks=1, on_gpu=False).memory.phases
        (round,) = (phase for phase in phases if phase.name == "round")
        found[name] = {part.name: part.size for part in round.components}
    assert "the target's logits" not in found["graddiff"]
    size = found["klmin"]["the target's logits"]
    tokens = size / (4 * SCRATCH["vocab_size"])
    assert tokens == int(tokens)
    assert 4 * 4 < tokens < 4 * 200  # four rows, all tokens of the longest but the first


@pytest.mark.slow
def test_a_pass_of_dpo_reads_two_answers_to_each_row(mapping):
    """DPO at half the rows of SimNPO reads as many: activations, and tokens of the forget passes, are the same."""
    found = {}
    for name, rows in (("simnpo", 8), ("dpo", 4)):
        config = config_of(mapping, method={"name": name, "batch_size": rows, "retain_weight": 0.0, "steps": 5})
        plan = make_plan(config, ranks=1, on_gpu=False)
        (round,) = (phase for phase in plan.memory.phases if phase.name == "round")
        activations = {part.name: part.size for part in round.components}["activations and logits"]
        found[name] = activations, plan.cost[1].gradient_tokens
    assert found["dpo"] == found["simnpo"]


def phases_of(config: UnlearnConfig, **more: Any) -> dict[str, dict[str, float]]:
    plan = make_plan(config, ranks=1, on_gpu=False, **more)
    return {phase.name: {part.name: part.size for part in phase.components} for phase in plan.memory.phases}


@pytest.mark.slow
def test_a_kept_round_is_one_copy_in_a_round_and_two_at_the_end(mapping):
    config = config_of(mapping, engine={"device": "cpu", "zero_stage": 0})
    before, after = phases_of(config), phases_of(config, keeps_round=True)
    copy = 4 * make_plan(config, on_gpu=False).sizes.parameters
    added = {name: sum(after[name].values()) - sum(before[name].values()) for name in before}
    assert added == {"preparation": 0, "load": 0, "round": copy, "evaluation": 2 * copy, "save": copy}
    # It lies in host memory, where a GPU's memory does not count it.
    on_gpu = [make_plan(config, on_gpu=True, keeps_round=keeps) for keeps in (False, True)]
    assert on_gpu[0].needed == on_gpu[1].needed
    host = [{phase.name: phase.host for phase in plan.memory.phases} for plan in on_gpu]
    assert host[1]["evaluation"] == host[0]["evaluation"] + 2 * copy
    # A change that makes the run fit is computed with the kept round too.
    plan = make_plan(config, on_gpu=False, keeps_round=True)
    entry = next(iter(plan.candidates()))
    section, value = entry.overrides[0].split("=")
    changed = config.model_dump(mode="json")
    changed[section.split(".")[0]][section.split(".")[1]] = json.loads(value)
    again = make_plan(UnlearnConfig.model_validate(changed), on_gpu=False, keeps_round=True)
    assert entry.needed == again.needed


@pytest.mark.slow
def test_what_checkpoint_selection_keeps_can_be_too_much(mapping, monkeypatch):
    config = config_of(mapping, engine={"device": "cpu", "zero_stage": 0})
    least, most = (make_plan(config, on_gpu=False, keeps_round=keeps).needed for keeps in (False, True))
    assert least < most
    with_memory(monkeypatch, (least + most) / 2)
    check_fit(config)
    with pytest.raises(MemoryLimitError):
        check_fit(config, keeps_round=True)


@pytest.mark.slow
def test_a_divergence_needs_one_copy_and_logits_and_no_second_model(mapping):
    base = config_of(mapping, engine={"device": "cpu", "zero_stage": 0})
    config = config_of(mapping, engine={"device": "cpu", "zero_stage": 0}, evaluation={"kl": True, "batch_size": 4})
    assert "divergence" not in phases_of(base)
    found = phases_of(config)["divergence"]
    plan = make_plan(config, on_gpu=False)
    assert found["the run's weights, while the target takes their place"] == 4 * plan.sizes.parameters
    answers = plan.work.divergence_answer_tokens
    assert found["the target's logits"] == 4 * SCRATCH["vocab_size"] * answers > 0
    assert found["logits and their divergence"] > 4 * 4 * SCRATCH["vocab_size"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "copies"), [("sampling", 1), ("few_shot", 1), ("quantization_4", 2), ("relearning", 5)]
)
def test_an_attack_loads_the_saved_model_beside_the_run(mapping, attack, copies):
    engine = {"device": "cpu", "zero_stage": 0}
    config = config_of(mapping, engine=engine, evaluation={"run_attacks": [attack], "batch_size": 4})
    found = phases_of(config)["attacks"]
    weights = 4 * make_plan(config, on_gpu=False).sizes.parameters
    held = sum(
        size for name, size in found.items() if any(word in name for word in ("model", "copy", "optimizer and g"))
    )
    assert held == copies * weights
    both = config_of(mapping, engine=engine, evaluation={"run_attacks": [attack, "relearning"], "batch_size": 4})
    assert "the copy that is trained" in phases_of(both)["attacks"]
    assert "attacks" not in phases_of(config_of(mapping, evaluation={"attacks": [attack]}))


@pytest.mark.slow
def test_the_depth_loads_two_models_beside_the_run_where_there_is_a_retrained_model(mapping):
    engine = {"device": "cpu", "zero_stage": 0}
    config = config_of(mapping, engine=engine, evaluation={"depth": True, "batch_size": 4})
    found = phases_of(config)["attacks"]
    weights = 4 * make_plan(config, on_gpu=False).sizes.parameters
    assert found["the saved model"] == found["the target, or the retrained model"] == weights
    assert found["hidden states of the facts"] > 0
    none = config_of(mapping, engine=engine, evaluation={"depth": True}, reference={"source": "none"})
    assert "attacks" not in phases_of(none)


@pytest.mark.slow
def test_the_tokens_of_a_divergence_and_of_sampled_answers_are_those_that_a_run_reads(tiny_mapping, monkeypatch):
    """A run counts what its models read, on rows that are encoded apart from the plan."""
    from ofmu.evaluation.robustness import attacks
    from ofmu.evaluation.robustness import depth as depth_module
    from ofmu.evaluation.robustness import divergence as module
    from ofmu.models.scratch import build_model, train_tokenizer
    from ofmu.plan.cost import run_cost

    evaluation = {"kl": True, "run_attacks": ["sampling"], "batch_size": 64, "max_new_tokens": 5}
    config = UnlearnConfig.model_validate({**tiny_mapping, "evaluation": evaluation})
    plain = UnlearnConfig.model_validate({**tiny_mapping, "evaluation": {**evaluation, "kl": False, "run_attacks": []}})
    data = load_data(config.data, config.seed)
    tokenizer = train_tokenizer(_texts(data), config.model.scratch.vocab_size)
    model = build_model(config.model.scratch, tokenizer, seed=0, max_positions=128).eval()
    other = build_model(config.model.scratch, tokenizer, seed=1, max_positions=128).eval()
    read = {"tokens": 0}

    def counted(module: Any, args: Any, kwargs: Any) -> None:
        mask, ids = kwargs.get("attention_mask"), kwargs["input_ids"]
        read["tokens"] += int(mask.sum()) if mask is not None and mask.shape == ids.shape else ids.numel()

    hook = model.register_forward_pre_hook(counted, with_kwargs=True)
    module.divergence(model, lambda: nullcontext(model), tokenizer, data, config.evaluation, config.data)
    hook.remove()
    work = make_plan(config).work
    assert read["tokens"] == 2 * work.divergence_tokens > 0
    result = attacks.sampling(model, tokenizer, data, config.evaluation, config.data, seed=0)
    assert result.details["rows"] == work.sampled_rows > 0
    prompts = [len(encode_prompt(tokenizer, row.question, config.data)) for row in data.forget.rows if row.question]
    assert len(prompts) == work.sampled_rows
    assert work.sampled_tokens == 8 * sum(length + 5 for length in prompts)
    found = depth_module.depth(
        model, lambda: nullcontext(model), lambda: nullcontext(other), tokenizer, data, config.evaluation, config.data
    )
    assert found.details["forward_tokens"] >= work.depth_tokens > 0.7 * found.details["forward_tokens"]
    deep = UnlearnConfig.model_validate(
        {**tiny_mapping, "evaluation": {**plain.evaluation.model_dump(), "depth": True}}
    )
    (of_depth, _), (without, _) = run_cost(deep, work) or ((), ()), run_cost(plain, work) or ((), ())
    assert of_depth.forward_tokens - without.forward_tokens == work.depth_tokens
    costs = [run_cost(each, work) for each in (plain, config)]
    assert costs[0] is not None
    assert costs[1] is not None
    added = costs[1][0].forward_tokens - costs[0][0].forward_tokens
    assert added == pytest.approx(2 * work.divergence_tokens + work.sampled_tokens)
