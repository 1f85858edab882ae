"""Peak memory as ``ofmu plan`` states it, beside the peak of real processes, phase by phase.

    python tests/bench/bench_plan.py [--pretrained DIR] [--models 5M 34M ...] [--stages 0 2] [--settings central ...]
        [--ranks 1] [--device cpu]

Each cell is a fresh process group that loads a model, takes two rounds of a method, scores the model and saves it.
Several ranks also fine-tune the model first, as a preparation does. The processes run a tiny model through the same
phases first, since what the libraries load is not the model's. The peak of a phase is the peak of resident memory above
what the process held then; on several ranks, that of the rank with the largest. Freed tensors go back to the system.
``--pretrained`` adds a saved model, such as SmolLM2-135M. With ``--device cuda`` the peak is of what torch allocated
there.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import sys
import tempfile
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

from measuring import held_memory, reset_peak_memory

GIB = 2**30
SHAPES = {
    "5M": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4},
    "34M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
}
VOCABULARY = {"5M": 2048, "34M": 8192}
SETTINGS: dict[str, dict[str, Any]] = {
    "central": {"method": {"similarity_threshold": -1.0}},
    "projection": {"method": {"decorrelation": "projection", "similarity_threshold": -1.0}},
    "simnpo": {"method": {"name": "simnpo", "steps": 4, "round_steps": 2}},
    "simnpo bf16": {
        "method": {"name": "simnpo", "steps": 4, "round_steps": 2},
        "engine": {"precision": "bf16", "gradient_precision": "bf16"},
    },
    "lora": {"method": {"similarity_threshold": -1.0}, "model": {"adapter": {"kind": "lora"}}},
    "robustness": {
        "method": {"name": "simnpo", "steps": 4, "round_steps": 2},
        "evaluation": {"kl": True, "run_attacks": ["sampling", "quantization_4", "relearning"]},
        "keeps_round": True,
    },
}
PHASES = ("load", "round", "evaluation", "save")
MORE_PHASES = ("divergence", "attacks")
"""The phases of the setting ``robustness``, which also keeps a round, and then the last round beside it."""
PREPARATION = "preparation"
"""The phase that is measured first on several ranks."""


def config_of(target: str, setting: str, stage: int, folder: str, device: str = "cpu") -> dict[str, Any]:
    """Return the config of one cell as a mapping. ``folder`` holds the rows."""
    method = {"batch_size": 4, **SETTINGS[setting]["method"]}
    if method.get("name", "ofmu") == "ofmu":
        method |= {"outer_steps": 2, "inner_steps": 1, "forget_margin": 20.0, "inner_lr": 1e-4, "outer_lr": 1e-6}
    return {
        "model": {"path": target, "is_target": True, **SETTINGS[setting].get("model", {})},
        "data": {"source": "files", "forget": f"{folder}/forget.jsonl", "retain": f"{folder}/retain.jsonl"},
        "reference": {"source": "none"},
        # The moments exist from the end of the first step on, so the second step holds the most.
        "training": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-6},
        "evaluation": {"batch_size": 4, "max_new_tokens": 16, **SETTINGS[setting].get("evaluation", {})},
        "method": method,
        "engine": {"zero_stage": stage, "device": device, "threads": 1, **SETTINGS[setting].get("engine", {})},
    }


def write_rows(folder: Path) -> None:
    """Write four rows to forget and four to retain."""
    from ofmu.data.config import DataConfig
    from ofmu.data.load import load_data

    data = load_data(DataConfig(), 0)
    for name, rows in (("forget", data.forget.rows[:4]), ("retain", data.retain.rows[:4])):
        lines = [json.dumps({"question": row.question, "answer": row.answer}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def make_model(directory: Path, name: str) -> Path:
    """Write an untrained Llama of a shape, with a tokenizer that was trained on the generated rows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from ofmu.data.config import DataConfig
    from ofmu.data.load import load_data
    from ofmu.models.scratch import train_tokenizer

    if (directory / "config.json").is_file():
        return directory
    data = load_data(DataConfig(), 0)
    tokenizer = train_tokenizer([f"{row.question} {row.answer}" for row in data.retain.rows], VOCABULARY.get(name, 512))
    shape = SHAPES.get(
        name, {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    )
    shape["num_key_value_heads"] = shape["num_attention_heads"]
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY.get(name, len(tokenizer)), **shape))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def measure(mapping: dict[str, Any], tiny: str, folder: Path) -> dict[str, float]:
    """Return the peak of each phase in bytes above the process that has run a tiny model."""
    small = {**mapping, "model": {**mapping["model"], "path": tiny}}
    _phases(small, folder / "tiny", {})
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = held_memory(mapping["engine"]["device"])
    peaks: dict[str, float] = {}
    _phases(mapping, folder / "real", peaks)
    return {phase: peak - before for phase, peak in peaks.items()}


def _phases(mapping: dict[str, Any], folder: Path, peaks: dict[str, float]) -> None:
    from ofmu.data.encoding import load_tokenizer
    from ofmu.data.load import load_data
    from ofmu.engine.build import build_engine, weight_sharder
    from ofmu.engine.cost import CostTracker
    from ofmu.engine.device import release_memory
    from ofmu.engine.rank_zero import barrier
    from ofmu.kept_round import KeptRound
    from ofmu.methods.base import Context
    from ofmu.methods.build import build_method
    from ofmu.models.weight_stream import WeightStream
    from ofmu.run_config import UnlearnConfig
    from ofmu.tasks.language.on_ranks import joins_ranks, train_on_ranks
    from ofmu.tasks.language.task import LanguageTask
    from ofmu.tasks.load import task_family

    config = UnlearnConfig.model_validate(mapping)
    target = Path(str(config.model.path))
    peak = partial(reset_peak_memory, config.engine.device)
    peak()
    task = task_family("language").load_task(config, target)
    assert isinstance(task, LanguageTask)
    peak()
    if joins_ranks(config.engine):
        folder.mkdir(exist_ok=True)
        train_on_ranks(target, load_tokenizer(str(target)), load_data(config.data, 0).retain.rows, config, folder, None)
        peaks[PREPARATION] = peak()
        barrier()
        # As a preparation ends; what it leaves behind until then is no part of the next phase.
        release_memory()
        peak()
    shard = weight_sharder(config.engine)
    model = task.load_model(double_backward=config.method.needs_double_backward, shard=shard)
    engine = build_engine(model, config.engine, CostTracker())
    del model
    peaks["load"] = peak()
    keeps_round = config.evaluation.kl
    task.keep_target(engine, folder)
    method, kept = build_method(Context(engine, task, 0), config.method), []
    for _ in method.rounds():
        kept = [KeptRound.of(1, engine.space)] if keeps_round else []
    peaks["round"] = peak()
    kept += [KeptRound.of(2, engine.space)] if keeps_round else []
    scores = task.score(engine)
    peaks["evaluation"] = peak()
    del kept[1:]
    peak()
    gathered = engine.space.gather_parameters()
    if engine.rank == 0:
        task.save(engine.model, folder, WeightStream(engine.space.shapes(), task.saved_dtype, gathered))
    deque(gathered, maxlen=0)
    peaks["save"] = peak()
    if config.evaluation.kl:
        task.measure(engine)
        peaks["divergence"] = peak()
    if config.evaluation.run_attacks and engine.rank == 0:
        task.attack(folder, task.metrics(scores, None), None, None)
        peaks["attacks"] = peak()
    engine.close()


def run_cell(target: str, setting: str, stage: int, tiny: str, ranks: int, device: str) -> dict[str, float]:
    """Measure one cell in fresh processes."""
    from ofmu.testing import run_script_on_ranks

    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "config.json", Path(folder) / "found"
        found.mkdir()
        write_rows(Path(folder))
        given.write_text(json.dumps(config_of(target, setting, stage, folder, device)))
        # glibc keeps freed tensors of up to 32 MiB for itself, in an order that no arithmetic foresees.
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"
        run_script_on_ranks(Path(__file__).resolve(), ranks, "--measure", str(given), tiny, str(found), timeout=3600)
        peaks = [json.loads(path.read_text()) for path in found.iterdir()]
        phases = dict.fromkeys(phase for of_rank in peaks for phase in of_rank)
        return {phase: max(of_rank[phase] for of_rank in peaks if phase in of_rank) for phase in phases}


def cell_text(planned: float, found: float) -> str:
    """Return planned and measured GiB, and by how much the plan is off."""
    return f"{planned / GIB:.2f} / {found / GIB:.2f} ({planned / found - 1:+.0%})"


def plan_cell(target: str, setting: str, stage: int, ranks: int, device: str) -> dict[str, float]:
    """Return the peaks that the plan states, in bytes."""
    from ofmu.plan.plan import make_plan
    from ofmu.run_config import UnlearnConfig

    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder))
        mapping, on_gpu = config_of(target, setting, stage, folder, device), device == "cuda"
        mapping["model"] |= {"is_target": False}  # so that the plan has a preparation
        config = UnlearnConfig.model_validate(mapping)
        keeps_round = bool(SETTINGS[setting].get("keeps_round"))
        plan = make_plan(config, on_gpu=on_gpu, ranks=ranks, keeps_round=keeps_round)
        return {phase.name: phase.device if on_gpu else phase.total for phase in plan.memory.phases}


def _read_results(path: Path | None) -> dict[str, dict[str, float]]:
    lines = path.read_text().splitlines() if path is not None and path.is_file() else []
    return {key: found for line in lines for key, found in json.loads(line).items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pretrained")
    parser.add_argument("--models", nargs="*", default=list(SHAPES))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS))
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--results", type=Path, help="JSON lines of measured peaks: kept, and not measured again.")
    options = parser.parse_args()
    known = _read_results(options.results)
    with tempfile.TemporaryDirectory() as folder:
        tiny = str(make_model(Path(folder) / "tiny", "tiny"))
        targets = {name: str(make_model(Path(folder) / name, name)) for name in options.models if name in SHAPES}
        if options.pretrained:
            targets[Path(options.pretrained).name] = options.pretrained
        more = MORE_PHASES if "robustness" in options.settings else ()
        phases = (*((PREPARATION,) if options.ranks > 1 else ()), *PHASES, *more)
        print(f"| model | setting | ZeRO stage | {' | '.join(phases)} |")
        print(f"|---|---|---{'|---' * len(phases)}|", flush=True)
        for name, target in targets.items():
            for stage in options.stages:
                for setting in options.settings:
                    key = f"{name} {setting} {stage}" + (f" {options.ranks} ranks" if options.ranks > 1 else "")
                    key += " on a GPU" if options.device == "cuda" else ""
                    found = known.get(key) or run_cell(target, setting, stage, tiny, options.ranks, options.device)
                    if options.results and key not in known:
                        with options.results.open("a") as stream:
                            stream.write(json.dumps({key: found}) + "\n")
                    planned = plan_cell(target, setting, stage, options.ranks, options.device)
                    cells = [cell_text(planned[phase], found[phase]) if phase in found else "" for phase in phases]
                    print(f"| {name} | {setting} | {stage} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        given, tiny_model, output = sys.argv[2:5]
        with tempfile.TemporaryDirectory() as place:
            peaks = measure(json.loads(Path(given).read_text()), tiny_model, Path(place))
        (Path(output) / os.environ["RANK"]).write_text(json.dumps(peaks))
    else:
        main()
