"""Run directories and outputs with any name that the file system allows."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ofmu.errors import RunError
from ofmu.run_config import UnlearnConfig
from tune import AskTell, ParetoSearch, SearchResult

OBJECTIVES = {"extraction_strength": "min", "model_utility": "max"}


def legal(name: str) -> bool:
    raw = os.fsencode(name)
    return 0 < len(raw) <= 255 and name not in (".", "..") and not {b"/"[0], 0} & set(raw)


NAMES = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
    st.text("?#%&=:;*[]{}()<>|!$'\"`\\~@+^, \t\n\r.-_aéß日🙂", min_size=1, max_size=30),
    st.binary(min_size=1, max_size=40).map(os.fsdecode),
).filter(legal)


@pytest.mark.slow
@settings(max_examples=6)
@given(NAMES, NAMES)
@example("study?mode=ro#x%20y", "a?b")
@example("caf\udce9", "out\udcff")
@example("n" * 255, "o" * 255)
@example("-rf", "~")
@example("line\nbreak\r", " ")
@example("sqlite:", "C:")
def test_a_search_under_any_name_stays_there_and_is_read_back(
    tiny_config: UnlearnConfig, run_name: str, output_name: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "runs").mkdir()
        run, output = root / "runs" / run_name, root / "out" / output_name
        with AskTell(tiny_config, OBJECTIVES, 2, run) as search:
            _finish_one(search)
        with AskTell.resume(run) as search:
            _finish_one(search)
        assert os.listdir(root / "runs") == [run_name]
        assert {"study.log", "config.yaml", "environment.json", "trials.csv", "search.json"} <= set(os.listdir(run))

        result = SearchResult.load(run)
        assert result.trials["trial"].tolist() == [0, 1]
        result.pick(1).export(output)
        assert os.listdir(root / "out") == [output_name]
        assert (output / "weights").read_text() == "1"
        with pytest.raises(RunError, match="already exists"):
            result.pick(0).export(output)


def _finish_one(search: AskTell) -> None:
    trial = search.ask()
    assert trial is not None
    (trial.directory / "model").mkdir(parents=True)
    (trial.directory / "model" / "weights").write_text(str(trial.number))
    search.tell(trial, {"extraction_strength": 0.5 - trial.number / 10, "model_utility": 0.5 - trial.number / 10})


def test_a_name_that_ray_cannot_store_is_refused_before_anything_starts(
    tiny_config: UnlearnConfig, tmp_path: Path
) -> None:
    name = tmp_path / "caf\udce9"
    with pytest.raises(RunError, match="whose name is not UTF-8") as caught:
        ParetoSearch(tiny_config, run_dir=name).run()
    str(caught.value).encode("ascii")
    assert not name.exists()
