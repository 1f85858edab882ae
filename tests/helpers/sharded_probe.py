"""Loading and saving under ZeRO-3, weight by weight, compared with loading and saving whole models; on every rank."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ofmu.engine.base import Engine
from ofmu.engine.build import build_engine, weight_sharder
from ofmu.engine.config import EngineConfig
from ofmu.engine.cost import CostTracker
from ofmu.losses import AnswerLoss
from ofmu.models.config import AdapterConfig
from ofmu.models.language import load_model, save_model
from ofmu.models.lora import add_adapters
from ofmu.models.weight_stream import WeightStream
from ofmu.testing import tiny_rows


class Tokenizer:
    name_or_path = ""

    def save_pretrained(self, directory: Path) -> None:
        """Save nothing."""


def state(engine: Engine) -> dict[str, Any]:
    """Return everything of an engine's model that must not depend on how it was loaded."""
    model: Any = engine.model
    space = engine.space
    value, gradient = engine.gradient(AnswerLoss(0), tiny_rows(5, 1))
    return {
        "weights": space.gather(space.masters()),
        "buffers": dict(model.named_buffers()),
        "gradient": space.gather(gradient),
        "loss": value,
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "name": model.name_or_path,
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "tied": [name for name, _ in model.named_parameters(remove_duplicate=False)],
        "class": type(model).__name__,
        "order": [segment.parameter for segment in space.segments()],
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return bool(left == right)


class Watched:
    """Counts the values that stand whole in memory when a weight is cut."""

    def __init__(self, shard: Any) -> None:
        self._shard, self.share, self.most, self.weights = shard, shard.share, 0, 0

    def __call__(self, parameter: nn.Parameter) -> None:
        # A look at all objects takes a while, so only every eighth weight and the large ones are looked at.
        if parameter.numel() > self.most or self.weights % 8 == 0:
            alive = {id(o): o for o in gc.get_objects() if isinstance(o, nn.Parameter) and not o.is_meta}
            self.most = max(self.most, sum(one.numel() for one in alive.values()))
        self.weights += 1
        self._shard(parameter)
        assert parameter.numel() == 0


@contextmanager
def gathering_is_counted() -> Iterator[list[int]]:
    """Yield the sizes of the weights that are gathered meanwhile."""
    from deepspeed.runtime.zero import partition_parameters

    sizes: list[int] = []
    gather = partition_parameters.dist.all_gather_into_tensor

    def counted(output: torch.Tensor, *arguments: Any, **settings: Any) -> Any:
        sizes.append(output.numel())
        return gather(output, *arguments, **settings)

    partition_parameters.dist.all_gather_into_tensor = counted
    try:
        yield sizes
    finally:
        partition_parameters.dist.all_gather_into_tensor = gather


def check(folder: Path, precision: str, rank: int) -> None:
    config = EngineConfig.model_validate({"zero_stage": 3, "precision": precision, "device": "cpu"})
    adapter = AdapterConfig(kind="lora" if "lora" in folder.name else "none")

    def engine(shard: Any) -> Engine:
        model: Any = load_model(folder, shard=shard)
        add_adapters(model, adapter, 3)
        with gathering_is_counted() as sizes:
            built = build_engine(model, config, CostTracker())
        # Adapters are made whole after the weights were cut.
        assert bool(sizes) == (shard is None or adapter.kind == "lora"), sizes
        return built

    whole = engine(None)
    expected = state(whole)
    whole.close()
    del whole
    gc.collect()
    sharder = weight_sharder(config)
    assert sharder is not None
    assert sharder.share == 1
    watched = Watched(sharder)
    sharded = engine(watched)
    for name, part in state(sharded).items():
        assert same(part, expected[name]), name
    largest = max(tensor.numel() for file in folder.glob("*.safetensors") for tensor in load_file(file).values())
    assert watched.most == largest, (watched.most, largest)
    if adapter.kind == "none":
        check_saving(sharded, folder, expected["weights"], rank)
    sharded.close()


def check_saving(engine: Any, folder: Path, expected: dict[str, torch.Tensor], rank: int) -> None:
    """Save by streaming, and compare every byte with a save of the whole model by Transformers."""
    space = engine.space
    for dtype in (torch.float32, torch.bfloat16):
        stream = WeightStream(space.shapes(), dtype, space.gather_each(space.masters()))
        streamed, whole = folder.parent / f"{folder.name}-streamed", folder.parent / f"{folder.name}-whole"
        if rank:
            stream.collect()
            continue
        save_model(engine.model, Tokenizer(), streamed, weights=stream)
        rounded = {name: tensor.to(dtype) for name, tensor in expected.items()}
        save_model(engine.model, Tokenizer(), whole, weights=rounded)
        files = sorted(path.name for path in whole.iterdir())
        assert files == sorted(path.name for path in streamed.iterdir())
        for name in files:
            assert (streamed / name).read_bytes() == (whole / name).read_bytes(), name


if __name__ == "__main__":
    torch.set_num_threads(1)
    import os

    for name, precision in json.loads(sys.argv[1]):
        print("model, precision:", name, precision, flush=True)
        check(Path(name), precision, int(os.environ["RANK"]))
