"""``ofmu prepare``: make the models that runs start from and are compared with, or find them in the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ofmu.cli.continuing import after_full_disk
from ofmu.cli.params import ConfigChoice, config_argument
from ofmu.cli.settings import read_settings
from ofmu.io.ranks import check_launch, launched_ranks
from ofmu.tasks.events import PartReady, PreparationEvent, TrainingContinued, TrainingEpoch

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from ofmu.run_config import UnlearnConfig
    from ofmu.tasks.events import PreparationCallback
    from ofmu.tasks.preparation import Prepared


@click.command("prepare")
@config_argument
def prepare_command(config: ConfigChoice) -> None:
    """Train the target and the retrain reference of CONFIG, and score both. Nothing in the cache is made again.

    CONFIG is a YAML file or a preset's name (default: quickstart).

    With cluster.num_workers above 0 the models are trained and scored in a Ray Train worker group. Otherwise they are
    in this process, or in all processes that torchrun or deepspeed has started.
    """
    from ofmu.preflight import check_inputs

    settings, cluster = read_settings(config)
    if cluster.num_workers == 0:
        check_launch()
    settings.engine.check_ranks(cluster.num_workers or launched_ranks().world_size)
    check_inputs(settings)
    is_first = launched_ranks().rank == 0
    callback = print_event if is_first else None
    if settings.engine.undecided:
        from cluster.capacity import decide_single_run

        decision = decide_single_run(settings, cluster, None)
        settings = decision.config
        if decision.sentence is not None and is_first:
            click.echo(decision.sentence)

    try:
        with after_full_disk(lambda: "the same command continues, since what is made stays in the cache"):
            prepared = _prepare(settings, cluster, callback)
    except KeyboardInterrupt:
        if is_first:
            click.echo(
                "Interrupted: what is made stays in the cache, and the same command makes the rest. A training "
                "continues from its last checkpoint, if it was long enough to have one",
                err=True,
            )
        raise SystemExit(130) from None
    if not is_first:
        return
    click.echo(f"base              {prepared.base or 'not needed'}")
    click.echo(f"target            {prepared.target}")
    click.echo(f"target scores     {prepared.target_scores}")
    click.echo(f"retrain           {prepared.retrain or 'not asked for'}")
    click.echo(f"reference scores  {prepared.reference_scores or 'not asked for'}")


def _prepare(settings: UnlearnConfig, cluster: ClusterConfig, callback: PreparationCallback | None) -> Prepared:
    # Imported after the inputs were checked, since importing torch, Transformers and Ray takes seconds.
    if cluster.num_workers > 0:
        from cluster.session import ray_session
        from cluster.train.preparation import prepare as prepare_on_workers

        with ray_session(cluster, settings.engine.device) as layout:
            return prepare_on_workers(settings, layout, callback)
    from ofmu.preparer import prepare

    return prepare(settings, callback=callback)


def print_event(event: PreparationEvent) -> None:
    """Print one line per part, and four lines per training."""
    if isinstance(event, PartReady):
        how = "made" if event.created else "found in the cache"
        click.echo(f"{event.part}: {how} in {event.seconds:.1f} s")
    elif isinstance(event, TrainingContinued):
        click.echo(f"{event.part}: continues from the end of epoch {event.epoch} of {event.epochs}")
    elif isinstance(event, TrainingEpoch) and event.epoch in _printed_epochs(event.epochs):
        click.echo(f"{event.part}: epoch {event.epoch} of {event.epochs}, loss {event.loss:.3f}")


def _printed_epochs(epochs: int) -> set[int]:
    return {max(1, round(epochs * share / 4)) for share in (1, 2, 3, 4)}
