"""The public contract harness passes sound methods and names what a broken one does wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from ofmu.losses import Loss
from ofmu.methods import register
from ofmu.methods.gradascent import GradAscent, GradAscentConfig
from ofmu.testing import check_method, run, run_on_ranks, small_spec

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


class DriftingConfig(GradAscentConfig):
    name: Literal["drifting"] = "drifting"  # type: ignore[assignment]


@register("drifting")
class Drifting(GradAscent[Any]):
    """Counts its own calls outside of the state, so a restored run is another run."""

    Config: ClassVar[Any] = DriftingConfig
    title = "Drifting"
    source = "this test"
    calls = 0

    def forget_loss(self, rows: Sequence[Any]) -> Loss[Any]:
        self.calls += 1
        return super().forget_loss(rows)

    def weights(self) -> tuple[float, float]:
        gamma, alpha = super().weights()
        return gamma * (1 + self.calls), alpha


@pytest.fixture(autouse=True)
def _own_module(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module"), [("fadingascent", "own_module"), ("npo", None), ("salun", None)])
def test_a_sound_method_passes_in_one_process(name, module):
    check_method(name, module, zero_stages=())


@pytest.mark.slow
def test_a_method_whose_state_is_not_in_the_checkpoint_is_found():
    sentence = "a restored run has other records than a whole run"
    with pytest.raises(AssertionError, match=re.escape(sentence)):
        check_method("drifting", kinds=["language"], zero_stages=())


@pytest.mark.ranks
@pytest.mark.timeout(300)
def test_the_example_method_is_the_same_on_two_ranks():
    check_method("fadingascent", "own_module", kinds=["language"], zero_stages=(3,))


@pytest.mark.ranks
@pytest.mark.timeout(300)
def test_every_rank_reports_the_same_cost():
    spec = small_spec("graddiff")
    (outcome,) = run_on_ranks([spec.with_engine(spec.engine.model_copy(update={"backend": "deepspeed"}))])
    assert outcome.gradient_evaluations == run(spec).gradient_evaluations
