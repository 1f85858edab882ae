"""Unlearning depth and logit lens equal explicit loops over the blocks, and stand at 0 and 1 where they must."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from ofmu.data.encoding import encode_example
from ofmu.data.load import load_data
from ofmu.data.rows import Example, RowSet, UnlearnData
from ofmu.errors import ModelError
from ofmu.evaluation.robustness import depth as module
from ofmu.evaluation.robustness.depth import depth
from ofmu.evaluation.robustness.facts import Fact
from ofmu.evaluation.robustness.patching import FactBatch, fact_states, log_probabilities
from ofmu.evaluator import evaluate
from ofmu.models import chunked_logits
from ofmu.models.blocks import decoder_blocks
from ofmu.models.config import ScratchModelConfig
from ofmu.models.scratch import build_model, train_tokenizer
from ofmu.preparer import prepare
from ofmu.run_config import UnlearnConfig

SHAPE = ScratchModelConfig(hidden_size=16, intermediate_size=32, num_layers=3, num_heads=2)
CONFIG = UnlearnConfig.model_validate(
    {
        "data": {"generated": {"authors": 4, "forget_authors": 2, "world_facts": 3}},
        "evaluation": {"batch_size": 3},
    }
)


def make_data() -> UnlearnData:
    """Five forget rows; the fact of each is the second half of the words of its answer."""
    data = load_data(CONFIG.data, CONFIG.seed)
    rows = data.evaluation["forget"].rows[:5]
    rows = tuple(replace(row, entity=row.answer.rstrip(".").split(" ", 2)[-1]) for row in rows)
    return replace(data, evaluation={"forget": RowSet("forget", rows)})


def make_model(family: str, seed: int, tokenizer: Any) -> Any:
    if family == "llama":
        model = build_model(SHAPE, tokenizer, seed=seed)
    else:
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=3, n_head=2, n_positions=128))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["Question: Who wrote it?\nAnswer: Ann wrote it."] * 4, 280)


Models = tuple[Any, Any, Any]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def models(request: pytest.FixtureRequest, tokenizer: Any) -> Models:
    """The evaluated model, the target and the retrained model: the first lies between the others."""
    target, retrained = (make_model(request.param, seed, tokenizer) for seed in (0, 1))
    model = copy.deepcopy(target)
    with torch.no_grad():
        for weight, other in zip(model.parameters(), retrained.parameters(), strict=True):
            weight.lerp_(other, 0.3)
    return model, target, retrained


def measured(models: Models, tokenizer: Any, data: UnlearnData | None = None, **evaluation: Any) -> Any:
    model, target, retrained = models
    section = CONFIG.evaluation.model_copy(update=evaluation)
    given = make_data() if data is None else data
    return depth(
        model, lambda: nullcontext(target), lambda: nullcontext(retrained), tokenizer, given, section, CONFIG.data
    )


def run_block(block: Any, hidden: torch.Tensor, model: Any) -> Any:
    """Run one block on one unpadded row, with positions and mask made here."""
    length = hidden.shape[1]
    mask = torch.full((length, length), -torch.inf).triu(1)[None, None]
    if model.config.model_type == "llama":
        places = torch.arange(length)[None]
        output = block(hidden, attention_mask=mask, position_embeddings=model.model.rotary_emb(hidden, places))
    else:
        output = block(hidden, attention_mask=mask)
    return output[0] if isinstance(output, tuple) else output


def parts_of(model: Any) -> tuple[Any, Any, Any]:
    """Return the embedding of ids, the blocks, and what comes behind them, by the names of each architecture."""
    if model.config.model_type == "llama":
        body = model.model
        return body.embed_tokens, body.layers, lambda hidden: model.lm_head(body.norm(hidden))
    body = model.transformer
    embed = lambda ids: body.wte(ids) + body.wpe(torch.arange(ids.shape[1]))  # noqa: E731
    return embed, body.h, lambda hidden: model.lm_head(body.ln_f(hidden))


@torch.no_grad()
def by_hand(models: Models, tokenizer: Any, rows: Any) -> tuple[float, float]:
    """Compute both scores row by row, with loops over the blocks and without hooks, batches or padding."""
    found: dict[str, list[float]] = {"depth": [], "lens": []}
    for row in rows:
        example = encode_example(tokenizer, row.question, row.answer, CONFIG.data)
        ids = torch.tensor([example.input_ids])
        start = next(
            place
            for place in range(example.answer_start, len(example.input_ids))
            if tokenizer.decode(example.input_ids[place:]).strip().startswith(row.entity)
            and not tokenizer.decode(example.input_ids[place + 1 :]).strip().startswith(row.entity)
        )
        tokens = next(
            count
            for count in range(1, len(example.input_ids))
            if tokenizer.decode(example.input_ids[start : start + count]).strip() == row.entity
        )
        where = range(start - 1, start + tokens - 1)

        def score(logits: torch.Tensor, ids: torch.Tensor = ids, where: Any = where) -> float:
            chosen = torch.log_softmax(logits[0], dim=-1)
            return float(np.mean([float(chosen[place, ids[0, place + 1]]) for place in where]))

        states = []
        for model in models:
            embed, blocks, _ = parts_of(model)
            hidden = embed(ids)
            states.append([hidden := run_block(block, hidden, model) for block in blocks])
        target = models[1]
        embed, blocks, head = parts_of(target)
        gaps: dict[str, list[list[float]]] = {"depth": [], "lens": []}
        for side in (0, 2):
            patched, lens = [], []
            for layer in range(len(blocks)):
                hidden = embed(ids)
                for index, block in enumerate(blocks):
                    hidden = run_block(block, hidden, target)
                    if index == layer:
                        for place in where:
                            hidden[0, place] = states[side][layer][0, place]
                patched.append(score(head(states[1][-1])) - score(head(hidden)))
                lens.append(score(head(states[1][layer])) - score(head(states[side][layer])))
            gaps["depth"].append(patched)
            gaps["lens"].append(lens)
        for name, (own, retrained) in gaps.items():
            counted = [(u, r) for u, r in zip(own, retrained, strict=True) if r > 0.05]
            if counted:
                share = sum(r * min(max(u / r, 0.0), 1.0) for u, r in counted) / sum(r for _, r in counted)
                found[name].append(share)
    return float(np.mean(found["depth"])), float(np.mean(found["lens"]))


@pytest.mark.slow
def test_both_scores_equal_loops_over_the_blocks(models: Models, tokenizer: Any) -> None:
    data = make_data()
    expected = by_hand(models, tokenizer, data.evaluation["forget"].rows)
    result = measured(models, tokenizer)
    assert result.metrics["unlearning_depth"] == pytest.approx(expected[0], abs=1e-4)
    assert result.metrics["logit_lens"] == pytest.approx(expected[1], abs=1e-4)
    assert all(0.02 < value < 0.98 for value in expected), "the case must tell the scores from their bounds"
    assert len(result.details["unlearning_depth"]["layers"]) == 3


@pytest.mark.slow
def test_the_target_has_0_and_the_retrained_model_1(models: Models, tokenizer: Any) -> None:
    _, target, retrained = models
    for model, expected in ((target, 0.0), (retrained, 1.0)):
        found = measured((model, target, retrained), tokenizer).metrics
        assert found == {"unlearning_depth": expected, "logit_lens": pytest.approx(expected, abs=1e-6)}


@pytest.mark.slow
def test_order_batches_padding_side_and_memory_do_not_matter(
    models: Models, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = measured(models, tokenizer).metrics
    rows = make_data().evaluation["forget"].rows
    turned = replace(make_data(), evaluation={"forget": RowSet("forget", rows[::-1])})
    assert measured(models, tokenizer, turned).metrics == pytest.approx(expected, abs=1e-4)
    for size in (1, 5):
        assert measured(models, tokenizer, batch_size=size).metrics == pytest.approx(expected, abs=1e-4)
    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    assert measured(models, left).metrics == expected
    monkeypatch.setattr(chunked_logits, "CHUNK_BYTES", 1)
    assert measured(models, tokenizer).metrics == pytest.approx(expected, abs=1e-4)
    monkeypatch.setattr(module, "HELD_STATE_BYTES", 1)
    opened: list[str] = []
    model, target, retrained = models

    def opens(name: str, other: Any) -> Any:
        opened.append(name)
        return nullcontext(other)

    result = depth(
        model,
        lambda: opens("target", target),
        lambda: opens("retrained", retrained),
        tokenizer,
        make_data(),
        CONFIG.evaluation,
        CONFIG.data,
    )
    assert result.metrics == pytest.approx(expected, abs=1e-4)
    assert opened == ["retrained", "target"] * 2


@pytest.mark.slow
def test_bf16_and_tied_embeddings(models: Models, tokenizer: Any) -> None:
    expected = measured(models, tokenizer).metrics
    half: Any = tuple(copy.deepcopy(model).bfloat16() for model in models)
    assert measured(half, tokenizer).metrics == pytest.approx(expected, abs=0.1)
    same = measured((half[1], half[1], half[2]), tokenizer).metrics
    assert same == {"unlearning_depth": 0.0, "logit_lens": 0.0}
    tied: Any = tuple(copy.deepcopy(model) for model in models)
    for model in tied:
        model.config.tie_word_embeddings = True
        model.set_output_embeddings(model.get_output_embeddings())
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    assert measured(tied, tokenizer).metrics["unlearning_depth"] == pytest.approx(
        by_hand(tied, tokenizer, make_data().evaluation["forget"].rows)[0], abs=1e-4
    )


def test_the_model_keeps_its_mode_and_its_hooks(models: Models, tokenizer: Any) -> None:
    model = copy.deepcopy(models[0]).train()
    measured((model, *models[1:]), tokenizer)
    assert model.training
    assert not any(block._forward_hooks for each in (model, *models) for block in decoder_blocks(each))


@pytest.mark.slow
def test_models_of_other_shapes_and_broken_models_have_a_reason(models: Models, tokenizer: Any) -> None:
    model, target, retrained = models
    shallow = build_model(SHAPE.model_copy(update={"num_layers": 2}), tokenizer, seed=0)
    result = measured((model, target, shallow), tokenizer)
    assert result.metrics == {"unlearning_depth": None, "logit_lens": None}
    assert result.reasons["logit_lens"].startswith("the retrained model has 2 blocks of width 16")
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(decoder_blocks(broken)[1].parameters()).fill_(torch.nan)
    reasons = measured((broken, target, retrained), tokenizer).reasons
    assert set(reasons.values()) == {"a model gives log-probabilities that are not finite"}
    same = measured((model, target, target), tokenizer)
    assert same.metrics == {"unlearning_depth": None, "logit_lens": None}
    assert "no gap exceeds 0.05 nats" in same.reasons["unlearning_depth"]


TINY = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": TINY,
    "mistral": TINY | {"num_key_value_heads": 1},
    "qwen2": TINY | {"num_key_value_heads": 1},
    "gemma2": TINY | {"num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0},
    "mixtral": TINY | {"num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2},
    "phi": TINY,
    "gpt_neox": TINY,
    "opt": TINY | {"ffn_dim": 24, "word_embed_proj_dim": 8, "max_position_embeddings": 64},
    "gpt2": {"vocab_size": 61, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64},
    "bloom": {"vocab_size": 61, "hidden_size": 16, "n_layer": 3, "n_head": 2},
    "falcon": TINY | {"bos_token_id": 1, "eos_token_id": 1},
    "gptj": {"vocab_size": 61, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 64, "rotary_dim": 4},
}


@pytest.mark.parametrize("family", ARCHITECTURES)
@torch.no_grad()
def test_every_architecture_gives_and_takes_hidden_states(family: str) -> None:
    """A model patched with another's states behind all positions of a block is that other model from there on."""
    settings = dict(ARCHITECTURES[family])
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).eval())
    ids = tuple(range(5, 14))
    batch = FactBatch([Fact(Example(ids, 1), 1, len(ids)), Fact(Example(ids[:5], 2), 2, 5)], 0, torch.device("cpu"))
    model, other = models
    states = fact_states(other, batch)
    assert states.shape == (3, 8 + 3, 16)
    own = log_probabilities(model, batch)
    assert torch.equal(log_probabilities(model, batch, 1, fact_states(model, batch)[1]), own)
    assert not torch.allclose(log_probabilities(model, batch, 1, states[1]), own)
    plain = model(input_ids=torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
    labels = torch.tensor(ids[1:])
    assert float(own[0]) == pytest.approx(float(plain.gather(1, labels[:, None]).mean()), abs=1e-4)


def test_a_model_without_blocks_is_named() -> None:
    model: Any = torch.nn.Linear(2, 2)
    model.config = GPT2Config(n_layer=3)
    with pytest.raises(ModelError, match="Linear has no list of 3 blocks"):
        decoder_blocks(model)


@pytest.mark.slow
def test_evaluate_reports_both_depths_and_names_a_missing_model(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "model": {"scratch": SHAPE.model_dump()},
        "data": CONFIG.data.model_dump(exclude_defaults=True),
        "training": {"epochs": 2},
        "evaluation": {"rouge": False, "depth": True},
        "cache_dir": str(tmp_path / "cache"),
    }
    config = UnlearnConfig.model_validate(settings)
    prepared = prepare(config)
    assert prepared.retrain is not None
    report = evaluate(prepared.retrain, config, output_dir=tmp_path / "evaluation")
    stored = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    for name in ("unlearning_depth", "logit_lens"):
        assert report["metrics"][name] == pytest.approx(1.0) or name in report["reasons"]
        assert stored["metrics"][name] == report["metrics"][name]
    assert report["depth"]["facts"] == report["depth"]["forget_rows"] > 0
    assert report["depth"]["forward_tokens"] > 0
    none = config.model_copy(update={"reference": config.reference.model_copy(update={"source": "none"})})
    without = evaluate(prepared.target, none)
    assert without["metrics"]["unlearning_depth"] is None
    assert without["reasons"]["unlearning_depth"].startswith("there is no retrained model")
