"""``ofmu unlearn``: one run, in this process or in a Ray Train worker group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ofmu.cli.continuing import after_full_disk
from ofmu.cli.params import ConfigChoice, Folder, config_argument
from ofmu.cli.settings import read_settings
from ofmu.io.ranks import check_launch, launched_ranks
from ofmu.io.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster.config import ClusterConfig
    from ofmu.chain.run import RunChain
    from ofmu.run_config import UnlearnConfig


@click.command("unlearn")
@config_argument
@click.option("--output", required=True, type=Folder(), metavar="DIR", help="The run's directory.")
@click.option("--after", type=Folder(), metavar="RUN", help="Start from this run's model; its rows stay forgotten.")
def unlearn_command(config: ConfigChoice, output: Path, after: Path | None) -> None:
    """Unlearn once under CONFIG (a YAML file or a preset's name) and write model and scores to DIR.

    The method is the config's, such as method.name=npo; the default is OFMU.

    With cluster.num_workers above 0 the run is a Ray Train worker group. Otherwise it runs in this process, or in
    every process that torchrun or deepspeed has started. A run that was interrupted continues.

    With --after the run starts from the model that RUN left. What RUN and the runs before it forgot is left out of the
    retain rows and measured again.
    """
    settings, cluster = read_settings(config)

    def again() -> str:
        return f"the same command, with --output {output}, {_continuation(output, cluster)}"

    try:
        with after_full_disk(again):
            chain = None if after is None else _open_run(after)
            with nullcontext(settings) if chain is None else _after(chain, settings, output) as settings:
                settings = _run(settings, cluster, output)
    except KeyboardInterrupt:
        if _is_first_process():
            click.echo(f"Interrupted: {again()}", err=True)
        raise SystemExit(130) from None
    if not _is_first_process():
        return
    _show(settings, output, chain)


def _continuation(output: Path, cluster: ClusterConfig) -> str:
    """Return what the same command does after an interruption."""
    from ofmu.run_files import RunFiles

    # A checkpoint that is being written has a hidden name.
    if any(RunFiles(output).checkpoints.glob("[!.]*")):
        return "continues from the last checkpoint"
    reason = "no checkpoint is written yet" if cluster.checkpoint_every else "cluster.checkpoint_every is 0"
    return f"begins with the first round, since {reason}; what is prepared stays in the cache"


def _open_run(after: Path) -> RunChain:
    from ofmu.chain.run import open_run
    from ofmu.io.library_logging import silence_libraries

    silence_libraries()
    return open_run(after)


@contextmanager
def _after(chain: RunChain, settings: UnlearnConfig, output: Path) -> Iterator[UnlearnConfig]:
    """Yield the config of a run after others, see :func:`ofmu.chain.run.chained_config`."""
    from ofmu.chain.run import chained_config, count_left_out

    with chained_config(settings, chain, output) as chained:
        left_out = count_left_out(settings, chained)
        if _is_first_process():
            click.echo(f"After {counted(len(chain.earlier), 'earlier run')}, from the model {chain.model}")
            if left_out:
                click.echo(f"Not retained: {counted(left_out, 'row')} that earlier runs forgot")
        yield chained


def _show(settings: UnlearnConfig, output: Path, chain: RunChain | None) -> None:
    """Print the metrics of a complete run, measure its chain, and write its card and its page."""
    from ofmu.cli.evaluate import show_report
    from ofmu.reports.model_card import write_card_or_warn
    from ofmu.reports.numbers import RATES_TITLE, rates_text
    from ofmu.reports.page import write_page_or_warn
    from ofmu.reports.run import run_page
    from ofmu.reports.stored import StoredRun
    from ofmu.reports.verdict import great_loss

    run = StoredRun(output, is_ours=True)
    reference = run.report["prepared"].get("reference_scores")
    shown = {"model": str(run.files.model), "reference": reference, "baseline_metrics": run.baseline_metrics}
    show_report(run.report | shown)
    if rates := run.report.get("learning_rates"):
        click.echo(f"{RATES_TITLE}: {rates_text(rates)}")
    if lost := great_loss(run.report["metrics"], run.baseline_metrics.get("target") or {}):
        fix = "ofmu search finds settings that keep more, if there are any"
        click.echo(f"Warning: this model {lost}: {'. '.join([fix, *settings.method.cautions()])}", err=True)
    if chain is not None:
        _show_chain(settings, output, chain, run.baseline_metrics.get("target") or {})
    click.echo(f"the model is in {run.files.model}")
    write_card_or_warn(run, run.files.model)
    page = write_page_or_warn(lambda: run_page(output, is_ours=True), output)
    if page is not None:
        click.echo(f"the report is in {page}")


def _show_chain(settings: UnlearnConfig, output: Path, chain: RunChain, target: Mapping[str, float | None]) -> None:
    from ofmu.chain.run import measure_chain
    from ofmu.reports.chain import print_chain, utility_line

    record = measure_chain(settings, chain, output, target)
    lines = [utility_line(each.name, each.first_target, each.target, each.result) for each in record.utility]
    print_chain(record.chain, output.absolute().name, lines)


def _is_first_process() -> bool:
    """Return whether this process prints."""
    return launched_ranks().rank == 0


def _run(config: UnlearnConfig, cluster: ClusterConfig, output: Path) -> UnlearnConfig:
    """Check the inputs, and run while no other run works in the directory. Rank 0 holds the lock.

    Return the config with what was decided about the engine.
    """
    from ofmu.engine.device import check_device
    from ofmu.io.library_logging import silence_libraries
    from ofmu.io.lock import locked
    from ofmu.preflight import check_inputs
    from ofmu.run_files import RunFiles, check_output

    check_output(output)
    if cluster.num_workers == 0:
        check_launch()
        check_device(config.engine)
    config.engine.check_ranks(cluster.num_workers or launched_ranks().world_size)
    check_inputs(config)
    silence_libraries()
    if config.engine.undecided:
        from cluster.capacity import decide_single_run

        decision = decide_single_run(config, cluster, RunFiles(output).read_config())
        config = decision.config
        if decision.sentence is not None and _is_first_process():
            click.echo(decision.sentence)
    busy = f"Another run works in {output}: wait for it, or name another directory for the output"
    with locked(output, busy, remove_unused=True) if _is_first_process() else nullcontext():
        was_complete = RunFiles(output).read_report() is not None
        _run_locked(config, cluster, output)
        if was_complete and _is_first_process():
            click.echo(f"The run in {output} was already complete: nothing was run")
    return config


def _run_locked(config: UnlearnConfig, cluster: ClusterConfig, output: Path) -> None:
    from ofmu.cli.prepare import print_event
    from ofmu.run_files import HISTORY

    if cluster.num_workers > 0:
        from cluster.train.trainer import train

        click.echo(
            f"{counted(cluster.num_workers, 'worker')} at work: the rounds are written to "
            f"{output / HISTORY}, not shown here"
        )
        train(config, output, cluster, prepare_callback=print_event)
        return
    from ofmu.trainer import unlearn

    every = cluster.checkpoint_every
    callback = print_event if _is_first_process() else None
    printer = StepPrinter(config.method.name, getattr(config.method, "diagnostics_every", None))
    unlearn(config, output, callback=printer, checkpoint_every=every, prepare_callback=callback)


_STEP_FIELDS = {
    "forget_loss": ("forget loss", "{method}forget loss {value:.4g}"),
    "retain_loss": ("retain loss", "retain loss {value:.4g}"),
    "similarity": ("similarity", "similarity {value:+.3f}"),
    "phi_norm": ("‖∇Φ‖", "‖∇Φ‖ {value:.3g}"),
    "direction_norm": ("‖direction‖", "‖direction‖ {value:.3g}"),
    "stop_weight": ("weight of the stop", "weight of the stop {value:.3g}"),
    "gradient_evaluations": ("gradient evaluations", "{value:.10g} gradient evaluations"),
}
"""The fields of a step's record that are printed, if the method records them: the name, and the form of a value."""


class StepPrinter:
    """Prints one line per outer step. Before the first line with gaps, it says how often the missing values come.

    Args:
        method: the name of the method.
        every: outer steps between two records of the method's diagnostics. None: every step has them.
    """

    def __init__(self, method: str, every: int | None) -> None:
        # The other methods descend on a loss of their own, which may fall while the loss of the answers rises.
        self._loss_of = "" if method == "ofmu" else f"{method}'s "
        self._every = every
        self._seen: set[str] = set()

    def __call__(self, record: dict[str, Any]) -> None:
        """Print a step's record."""
        gaps = [name for key, (name, _) in _STEP_FIELDS.items() if key in self._seen and record.get(key) is None]
        if gaps and self._every is not None:
            click.echo(
                f"{', '.join(gaps)}: every {self._every} outer steps (method.diagnostics_every), and at the last one"
            )
            self._every = None
        self._seen |= {key for key in _STEP_FIELDS if record.get(key) is not None}
        present = {key: form for key, (_, form) in _STEP_FIELDS.items() if record.get(key) is not None}
        shown = [form.format(value=record[key], method=self._loss_of) for key, form in present.items()]
        # Methods with one loop have no outer steps.
        name = "outer step" if "phi_norm" in record else "round"
        click.echo(f"{name} {record['outer_step']}: {', '.join(shown)}")
