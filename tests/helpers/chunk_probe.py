"""One rank of a test: gradients from chunks of logits at a ZeRO stage, compared with whole logits in one process."""

from __future__ import annotations

import json
import sys

import torch

from ofmu.engine.build import build_engine
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.engine.torch import TorchEngine
from ofmu.losses import AnswerLoss, answer_nll
from ofmu.models import chunked_logits
from ofmu.testing import tiny_llama, tiny_rows


def check(stage: int, tied: bool) -> None:
    def model() -> torch.nn.Module:
        made = tiny_llama()
        if tied:
            made.config.tie_word_embeddings = True
            made.lm_head.weight = made.model.embed_tokens.weight
        return made

    # Nine rows: one rank has fewer micro-batches than the other.
    rows, loss = tiny_rows(9, 1), AnswerLoss(0)
    chunked_logits.CHUNK_BYTES = 2**26
    alone = TorchEngine(model(), CostTracker())
    value, expected = alone.gradient(loss, rows)
    values = answer_nll(alone.model, rows, 0, torch.device("cpu"))
    whole = alone.space.gather(expected)
    chunked_logits.CHUNK_BYTES = 2000
    config = EngineConfig(backend="deepspeed", zero_stage=stage, device="cpu", threads=1, micro_batch_size=2)
    engine = build_engine(model(), config, CostTracker())
    found_value, gradient = engine.gradient(loss, rows)
    assert abs(found_value - value) <= 1e-6 * value
    for name, part in engine.space.gather_each(gradient):
        assert (part.view(-1) - whole[name].view(-1)).norm() <= 1e-5 * expected[0].norm(), (stage, name)
    by_row = engine.row_values(lambda module, batch, device: [*answer_nll(module, batch, 0, device)], rows, 0)
    torch.testing.assert_close(torch.tensor(by_row), values.detach(), rtol=1e-5, atol=1e-5)
    engine.close()


for case in json.loads(sys.argv[1]):
    check(*case)
