from __future__ import annotations

import io
import json

import pandas as pd
import pytest
from rich.console import Console

from ofmu.errors import RunError
from tune.compare.console import CompareConsoleCallback
from tune.compare.report import markdown, write_reports
from tune.compare.result import ComparisonResult
from tune.compare.tables import verdict
from tune.space.constraints import Limit

GOOD = [[(0.2, 0.5)] * 3, [(0.4, 0.68)] * 3, [(0.6, 0.77)] * 3]
POOR = [[(d + 0.1, u - 0.1) for d, u in seeds] for seeds in GOOD]


@pytest.fixture
def written(summarised, tmp_path) -> ComparisonResult:
    result = ComparisonResult(tmp_path, summarised({"good": GOOD, "poor": [*POOR, [(0.1, 0.1), None, (0.1, 0.1)]]}))
    write_reports(result)
    return result


def shown(result: ComparisonResult, **settings: object) -> str:
    stream = io.StringIO()
    CompareConsoleCallback(Console(file=stream, width=150, **settings)).on_end(result)
    return stream.getvalue()


def test_a_written_result_is_read_back(written):
    assert ComparisonResult.load(written.run_dir) == written
    assert {path.name for path in written.run_dir.iterdir()} == {
        f"compare.{end}" for end in ("json", "csv", "md", "png")
    }
    assert (written.run_dir / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_holds_a_row_per_method(written):
    table = pd.read_csv(written.run_dir / "compare.csv")
    assert table["method"].tolist() == ["good", "poor"]
    assert table["significantly_best"].tolist() == [True, False]
    assert table["hypervolume"].tolist() == pytest.approx([m.hypervolume for m in written.summary.methods])
    assert table["model_utility at ks_statistic ≤ 0.45"].tolist() == pytest.approx([0.68, 0.4])
    assert table["ks_statistic at model_utility ≥ 0.72: seeds"].tolist() == [3, 0]
    assert table["failed_runs"].tolist() == [0, 1]
    assert table["pruned_trials"].tolist() == [2, 2]


def test_only_the_significantly_best_is_bold(written, summarised):
    text = markdown(written.summary)
    assert "| **good** |" in text
    assert text.count("**") == 2
    assert "good is significantly better than every other method" in verdict(written.summary)
    alike = summarised({"a": GOOD, "b": GOOD})
    assert "**" not in markdown(alike)
    assert "No method is significantly best" in verdict(alike)
    assert "*" not in shown(ComparisonResult(written.run_dir, alike)).replace("* significantly best;", "")


def test_a_level_that_not_all_seeds_reach_shows_their_number(written):
    row = next(line for line in markdown(written.summary).splitlines() if line.startswith("| poor |"))
    assert "0.100 (2/3)" in row
    assert "–" in row


def test_terminal_and_pipe_show_the_same_cells(written):
    plain, colored = shown(written), shown(written, force_terminal=True, color_system=None)
    for cell in ("good*", "poor", "0.680", "400 / 40", "1 of 8, 2 pruned / 1 of 12", "lr 0.75"):
        assert cell in plain
        assert cell in colored
    assert "\x1b" not in plain


def test_a_missing_or_foreign_comparison_is_refused(tmp_path):
    with pytest.raises(RunError, match="ofmu compare --resume"):
        ComparisonResult.load(tmp_path)
    (tmp_path / "compare.json").write_text(json.dumps({"format": "ofmu-compare/0"}))
    with pytest.raises(RunError, match="not written by this version"):
        ComparisonResult.load(tmp_path)


def test_the_plot_names_every_method_the_target_and_the_reference(written):
    axes = written.plot().axes[0]
    labels = axes.get_legend_handles_labels()[1]
    assert [label.split()[0] for label in labels if "hypervolume" in label] == ["good", "poor"]
    assert {"untouched target", "retrained"} <= set(labels)


def test_the_plot_leaves_out_runs_that_violate_a_constraint(summarised, tmp_path):
    """It draws what it draws of a comparison in which these runs failed."""

    def drawn(run, **more):
        summary = summarised({"some": [*GOOD[:2], [(0.6, 0.77), run, (0.6, 0.75)]], "all": [[run] * 3]}, **more)
        axes = ComparisonResult(tmp_path, summary).plot().axes[0]
        lines = [line.get_xydata().tolist() for line in axes.lines]
        bars = [segment.tolist() for bars in axes.collections for segment in getattr(bars, "get_segments", list)()]
        return lines, bars, axes.get_legend_handles_labels()[1]

    assert drawn((0.01, 0.1), limits=(Limit("model_utility", "min", 0.4),)) == drawn(None)
