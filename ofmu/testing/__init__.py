"""Test an unlearning method on tiny problems, in one process and on several ranks.

Every built-in method passes :func:`check_method`. A test of your own method needs one call::

    from ofmu.testing import check_method

    def test_fading_ascent() -> None:
        check_method("fadingascent", module="own_module")

The method here is the one of ``examples/own_module.py``, and the test must be able to import that module. The call
raises ``AssertionError`` with one sentence if the method breaks the contract. It needs no test framework.

For tests of single properties, :func:`run` executes a method in this process, and :func:`run_on_ranks` executes it on
several processes under DeepSpeed::

    from ofmu.engine.config import EngineConfig
    from ofmu.testing import RunSpec, assert_same_run, run, run_on_ranks

    spec = RunSpec(method={"name": "npo", "batch_size": 6, "steps": 4, "lr": 1e-3, "round_steps": 1})
    sharded = spec.with_engine(EngineConfig(zero_stage=3, device="cpu"))
    assert_same_run(run_on_ranks([sharded])[0], run(spec))

The problems behind a :class:`RunSpec` are :func:`tiny_language_task` with :func:`tiny_llama`, and
:func:`tiny_image_task` with :func:`tiny_classifier`. A run of a few steps takes less than a second.
"""

from ofmu.testing.contract import (
    assert_same_run,
    check_checkpoint,
    check_declaration,
    check_method,
    check_micro_batches,
    check_no_op,
    check_same_cost,
    check_weights_move,
    small_spec,
)
from ofmu.testing.images import tiny_classifier, tiny_image_task, tiny_images
from ofmu.testing.language import MemoryLanguageTask, tiny_language_task, tiny_llama, tiny_rows
from ofmu.testing.ranks import run_on_ranks, run_script_on_ranks
from ofmu.testing.runs import RunOutcome, RunSpec, run
from ofmu.testing.task import MemoryTask

__all__ = [
    "MemoryLanguageTask",
    "MemoryTask",
    "RunOutcome",
    "RunSpec",
    "assert_same_run",
    "check_checkpoint",
    "check_declaration",
    "check_method",
    "check_micro_batches",
    "check_no_op",
    "check_same_cost",
    "check_weights_move",
    "run",
    "run_on_ranks",
    "run_script_on_ranks",
    "small_spec",
    "tiny_classifier",
    "tiny_image_task",
    "tiny_images",
    "tiny_language_task",
    "tiny_llama",
    "tiny_rows",
]
