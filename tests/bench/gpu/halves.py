"""Two runs at once on one card, each with half of its memory, beside one run alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import IO, Any

from gpu.settings import Figures, Row, Settings, case_row, engine_for
from gpu.shapes import SMOL_135M, TINY

METHOD = {
    "name": "ofmu", "outer_steps": 100, "inner_steps": 1, "inner_lr": 1e-4, "outer_lr": 1e-6,
    "similarity_threshold": -1.0, "forget_margin": 20.0, "derivative_check_every": 0,
}  # fmt: skip
ROUNDS = 3
_READY, _SECONDS = "ready", "seconds "


def measure(settings: Settings) -> Iterator[Row]:
    rows, length = (2, 16) if settings.tiny else (4, 256)
    config = {"method": METHOD, "engine": engine_for(settings, None), "rows": rows, "length": length}
    yield case_row("two halves of a card at once", partial(_both, settings, rows, length), config=config)


def _both(settings: Settings, rows: int, length: int) -> Figures:
    given = json.dumps([settings.device, settings.tiny, settings.seed, rows, length])
    runs = [_start(given) for _ in range(2)]
    try:
        for run in runs:
            _expect(run, _READY)
        alone = _seconds([runs[0]])
        together = _seconds(runs)
    finally:
        for run in runs:
            run.kill()
            run.wait()
    return {"alone s": alone, "both s": together, "both/alone": together / alone, "throughput": 2 * alone / together}


def _start(given: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from gpu.halves import serve; serve()", given]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _seconds(runs: list[subprocess.Popen[str]]) -> float:
    """Let the runs take their rounds at once. Return the seconds until the last one has ended."""
    begin = time.perf_counter()
    for run in runs:
        _stream(run.stdin).write("go\n")
        _stream(run.stdin).flush()
    for run in runs:
        _expect(run, _SECONDS)
    return time.perf_counter() - begin


def _expect(run: subprocess.Popen[str], start: str) -> str:
    """Return the next line that begins with ``start``. Libraries may print others."""
    for line in _stream(run.stdout):
        if line.startswith(start):
            return line
    raise RuntimeError(f"a run ended with exit status {run.wait()}")


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def serve() -> None:
    """Build a run in this process, take one round, then :data:`ROUNDS` rounds for each line of standard input."""
    import torch

    from gpu.shapes import build_llama
    from measuring import build_run, random_rows
    from ofmu.engine.config import EngineConfig

    device, tiny, seed, rows, length = json.loads(sys.argv[1])
    settings = Settings(device, tiny, seed)
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(0.5)
    shape: Any = TINY if tiny else SMOL_135M
    forget, retain = (random_rows(rows, shape["vocab_size"], length, prompt=4, seed=each) for each in (1, 2))
    model = build_llama(shape, device, seed=seed)
    engine = EngineConfig.model_validate(engine_for(settings, None))
    _, unlearning = build_run(model, engine, {"batch_size": rows, **METHOD}, forget, retain)
    taking = unlearning.rounds()
    next(taking)
    print(_READY, flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        for _ in range(ROUNDS):
            next(taking)
        print(_SECONDS, time.perf_counter() - begin, flush=True)
