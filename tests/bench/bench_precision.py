"""Whole runs in bf16 and with 8-bit moments beside runs in fp32: do the results end within the spread of the seeds?

    python tests/bench/bench_precision.py [CONFIG] [section.key=value ...] [--methods NAME ...] [--seeds N]

Each method runs on the same prepared target, on N seeds, in each setting: fp32, bf16 weights with fp32 masters, and
fp32 with AdamW's moments in 8 bits. The table has the mean of a metric over the seeds, the standard deviation over the
seeds in fp32, and how far the other settings' means lie from fp32's, in these deviations. Without a config: the
quickstart, with short runs. Runs are kept with ``--directory``, and runs that are complete there do not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

METRICS = ("ks_statistic", "forget_probability", "extraction_strength", "retain_probability", "model_utility")
SETTINGS: dict[str, tuple[dict[str, object], bool]] = {
    # name: (engine, 8-bit moments)
    "fp32": ({"backend": "torch"}, False),
    "bf16": ({"precision": "bf16", "backend": "torch"}, False),
    "8-bit": ({"backend": "torch"}, True),
}
METHODS: dict[str, dict[str, object]] = {
    "ofmu@first_order": {"name": "ofmu", "variant": "first_order"},
    "ofmu": {"name": "ofmu", "derivative": "exact", "decorrelation": "cosine"},
    "simnpo": {"name": "simnpo"},
    "npo": {"name": "npo"},
    "rmu": {"name": "rmu"},
}
SHORT = ["method.outer_steps=20", "method.inner_steps=2"]
"""Settings of the quickstart's OFMU."""
QUICK: dict[str, object] = {"lr": 1e-3, "steps": 40}
"""Settings of the quickstart's methods with one loop."""


def overrides_of(name: str, setting: str, seed: int, one_loop: dict[str, object]) -> list[str]:
    """Return the keys that a run sets."""
    engine, in_8_bits = SETTINGS[setting]
    method = dict(METHODS[name])
    if method["name"] != "ofmu":
        method |= one_loop
    if in_8_bits:
        method["outer_update" if method["name"] == "ofmu" else "update"] = "adamw_8bit"
    keys = {f"method.{key}": value for key, value in method.items()} | {
        f"engine.{key}": value for key, value in engine.items()
    }
    return [f"method.seed={seed}", *(f"{key}={json.dumps(value)}" for key, value in keys.items())]


def run(arguments: argparse.Namespace, folder: Path) -> dict[tuple[str, str], list[dict[str, float]]]:
    """Make all runs. Return the metrics of each seed by method and setting."""
    from ofmu import UnlearnConfig, unlearn
    from ofmu.preparer import prepare

    one_loop = dict(part.split("=", 1) for part in arguments.one_loop) if arguments.one_loop else dict(QUICK)
    changes = [entry for entry in arguments.overrides if not entry.startswith("method.")]
    of_method = [entry for entry in arguments.overrides if entry.startswith("method.")]
    if arguments.config == "quickstart":
        of_method = [*SHORT, *of_method]
    prepared = prepare(UnlearnConfig.read(arguments.config, [*changes, "engine.backend=torch"]))
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for name in arguments.methods:
        for setting in arguments.settings:
            for seed in range(1, arguments.seeds + 1):
                own = of_method if METHODS[name]["name"] == "ofmu" else []
                keys = [*changes, *own, *overrides_of(name, setting, seed, one_loop)]
                config = UnlearnConfig.read(arguments.config, keys)
                begin = time.perf_counter()
                result = unlearn(config, folder / f"{name}-{setting}-{seed}", prepared=prepared, checkpoint_every=0)
                values = {metric: float(result.metrics.get(metric) or 0.0) for metric in METRICS}
                found.setdefault((name, setting), []).append(values)
                shown = ", ".join(f"{metric} {value:.3f}" for metric, value in values.items())
                print(f"{name} {setting} seed {seed}: {shown}; {time.perf_counter() - begin:.0f} s", flush=True)
    return found


def table(found: dict[tuple[str, str], list[dict[str, float]]], methods: list[str], settings: list[str]) -> list[str]:
    """Return the rows of the table."""
    lines = [
        "| method | metric | fp32: mean ± deviation | "
        + " | ".join(f"{name}: mean (distance)" for name in settings)
        + " |",
        "|" + "---|" * (3 + len(settings)),
    ]
    for method in methods:
        for metric in METRICS:
            base = [values[metric] for values in found[method, "fp32"]]
            mean, spread = statistics.mean(base), statistics.stdev(base) if len(base) > 1 else float("nan")
            cells = []
            for setting in settings:
                other = statistics.mean(values[metric] for values in found[method, setting])
                away = abs(other - mean)
                cells.append(f"{other:.3f} ({away / spread if spread else away and float('inf'):.1f})")
            lines.append(f"| {method} | {metric} | {mean:.3f} ± {spread:.3f} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="quickstart")
    parser.add_argument("overrides", nargs="*", default=[], help="keys of all runs; method.* is OFMU's")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["ofmu@first_order", "simnpo"])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--one-loop", nargs="+", metavar="KEY=VALUE", help="the method section of the other methods")
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = run(arguments, arguments.directory or Path(scratch))
    print("\n".join(table(found, arguments.methods, [name for name in arguments.settings if name != "fp32"])))


if __name__ == "__main__":
    main()
