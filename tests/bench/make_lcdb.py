"""Learning curves that are not ours, for ``bench_rungs.py``: LCDB (Mohr et al., ECML 2022), which PyPI ships whole.

    pip download --no-deps lcdb==0.1.0 && tar xzf lcdb-0.1.0.tar.gz
    python tests/bench/make_lcdb.py lcdb-0.1.0/lcdb 819 953 1489 41972       # OpenML ids; writes lcdb_819.csv …

A trial is one of some twenty scikit-learn classifiers on one of 25 splits of a data set; its objectives are the
validation accuracy and log loss. LCDB has them at training sizes a factor √2 apart. A curve has ROUNDS rounds, each
with the same share of the rows, and the values of the largest size that its rows suffice for; the cost is the share
of the rows in percent. Trials that lack the full size are left out.
"""

from __future__ import annotations

import argparse
import bisect
import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROUNDS = 16
METRICS = {"accuracy": "database-accuracy.csv", "log_loss": "database-logloss.csv"}
Trial = tuple[str, str, str]
Sizes = dict[int, list[str]]


def read(folder: Path, wanted: set[str]) -> dict[str, dict[Trial, Sizes]]:
    """Return, by data set and trial, the metrics at each training size."""
    found: defaultdict[str, defaultdict[Trial, Sizes]] = defaultdict(lambda: defaultdict(dict))
    for column, name in enumerate(METRICS.values()):
        with (folder / name).open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                if row["openmlid"] in wanted:
                    trial = row["learner"], row["outer_seed"], row["inner_seed"]
                    values = found[row["openmlid"]][trial].setdefault(int(row["size_train"]), [""] * len(METRICS))
                    values[column] = row["score_valid"]
    return {data_set: dict(trials) for data_set, trials in found.items()}


def rounds(sizes: Sizes, full: int) -> Iterator[list[object]]:
    """Yield round, cost and values, one round after another."""
    ordered = sorted(sizes)
    for number in range(1, ROUNDS + 1):
        place = bisect.bisect_right(ordered, number * full / ROUNDS + 1e-9) - 1
        yield [number, 100 * number / ROUNDS, *sizes[ordered[place]]]


def main() -> None:
    """Write one table per data set into the current folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("data_sets", nargs="+")
    arguments = parser.parse_args()
    for data_set, trials in read(arguments.folder, set(arguments.data_sets)).items():
        full = max(max(sizes) for sizes in trials.values())
        kept = [sizes for sizes in trials.values() if max(sizes) == full and min(sizes) <= full / ROUNDS]
        path = Path(f"lcdb_{data_set}.csv")
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["trial", "round", "cost", *METRICS])
            writer.writerows([number, *row] for number, sizes in enumerate(kept) for row in rounds(sizes, full))
        print(f"{path}: {len(kept)} trials, {full} rows in full")


if __name__ == "__main__":
    main()
