"""``ofmu plan``: what a run and a search need, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ofmu.cli.params import ConfigChoice, FiniteNumber, config_argument
from ofmu.io.console_table import Cell, Column, print_table
from ofmu.io.text import counted

if TYPE_CHECKING:
    from ofmu.plan.cost import Cost
    from ofmu.plan.plan import Plan
    from tune.config import SearchConfig


@click.command("plan")
@config_argument
@click.option(
    "--gpus", type=click.IntRange(1), metavar="N", help="Ranks, each with a GPU; default: as the config says."
)
@click.option("--memory", type=FiniteNumber(0, min_open=True), metavar="GB", help="Memory of a GPU in GB (10⁹ bytes).")
@click.option(
    "--tokens-per-second",
    type=FiniteNumber(0, min_open=True),
    metavar="R",
    help="Tokens that a fine-tuning step reads per second. With it, hours are computed too.",
)
@click.option(
    "--price",
    type=FiniteNumber(0),
    metavar="P",
    help="Price of an hour of one rank. With it and --tokens-per-second, the cost is computed too.",
)
def plan_command(
    config: ConfigChoice,
    gpus: int | None,
    memory: float | None,
    tokens_per_second: float | None,
    price: float | None,
) -> None:
    """Compute memory per rank, gradient evaluations and tokens of a run and a search of CONFIG. No weights are read.

    CONFIG is a YAML file or a preset's name. The exit status is 1 if the run does not fit.
    """
    if price is not None and tokens_per_second is None:
        raise click.UsageError("--price needs --tokens-per-second, without which the hours are unknown")

    from ofmu.io.library_logging import silence_libraries
    from ofmu.plan.budget import device_memory
    from ofmu.plan.decision import decide_engine
    from ofmu.plan.plan import make_plan, runs_on_gpu
    from ofmu.preflight import check_retrain_has_base
    from tune.config import search_config, with_named_settings

    mapping, notes = with_named_settings(config.read_mapping(), config.overrides)
    settings = search_config(mapping)
    silence_libraries()
    unlearn = settings.unlearn
    check_retrain_has_base(unlearn)
    for note in (*notes, *unlearn.ineffective()):
        click.echo(note)
    for note in unlearn.method.cautions():
        click.echo(f"Warning: {note}", err=True)
    ranks = gpus or max(1, settings.cluster.num_workers)
    on_gpu_here = settings.cluster.sees_gpu and runs_on_gpu(unlearn)
    on_gpu = gpus is not None or memory is not None or settings.cluster.reserved_gpus > 0 or on_gpu_here
    if memory is not None:
        budget: float | None = memory * 1e9
    elif on_gpu:
        budget = device_memory(on_gpu=True) if runs_on_gpu(unlearn) else None
    else:
        available = device_memory(on_gpu=False)
        budget = None if available is None else available / ranks
    keeps_round = settings.search.checkpoint_selection.enabled
    unknown = None if budget is not None else "the memory of a GPU is unknown: give --memory"
    decision = decide_engine(
        unlearn, ranks=ranks, on_gpu=on_gpu, keeps_round=keeps_round, budget=budget, unknown=unknown
    )
    if decision.sentence is not None:
        click.echo(decision.sentence)
    unlearn = decision.config
    plan = make_plan(unlearn, ranks=ranks, on_gpu=on_gpu, budget=budget, keeps_round=keeps_round)
    _show_model(plan)
    _show_memory(plan)
    _show_cost(plan, settings, tokens_per_second, price)
    if not _show_verdict(plan):
        raise SystemExit(1)


def _show_model(plan: Plan) -> None:
    from ofmu.models.meta import MAX_PARAMETERS

    sizes, work = plan.sizes, plan.work
    about = "" if sizes.exact else " (estimated)"
    click.echo(
        f"model: {_count(sizes.parameters)} weights{about}, of which {_count(plan.memory.trainable)} are trained: "
        f"embeddings {_count(sizes.embeddings)}, output layer {_count(sizes.head)}, "
        f"{counted(sizes.layers, 'block')} of {_count(sizes.layer)}"
    )
    how = ""
    if not work.measured:
        reason = "no machine holds this model" if sizes.parameters > MAX_PARAMETERS else "the model has no tokenizer"
        how = f", the value of data.max_length, since {reason} to count them"
    click.echo(
        f"rows: {work.forget_rows} to forget, {work.retain_rows} to retain, at most "
        f"{counted(work.longest, 'token')}{how}; an evaluation scores {counted(work.evaluation_rows, 'answer')}"
    )


def _show_memory(plan: Plan) -> None:
    from ofmu.plan.check import gib

    where = "GPU" if plan.on_gpu else "machine"
    click.echo(f"\nmemory of one of {counted(plan.ranks, 'rank')}, at the peak of each phase")
    rows: list[tuple[Cell, ...]] = []
    for phase in plan.memory.phases:
        host = gib(phase.host) if plan.on_gpu and phase.host else ""
        rows.append((((phase.name, "bold"),), ((gib(phase.needed(on_gpu=plan.on_gpu)), "bold"),), host))
        rows += [
            (
                f"  {part.name}",
                "" if plan.on_gpu and part.on_host else gib(part.size),
                gib(part.size) if plan.on_gpu and part.on_host else "",
            )
            for part in phase.components
            if part.size
        ]
    columns = [Column("phase"), Column(where, justify="right"), Column("host" if plan.on_gpu else "", justify="right")]
    print_table(columns, rows)
    besides = " and about 1 GB of its GPU" if plan.on_gpu else ""
    click.echo(f"These are tensors. Python and the libraries take about half a GiB of memory a rank besides{besides}.")
    if not plan.memory.declared:
        click.echo("The method does not declare the vectors that it holds, so they are missing here.")


def _show_cost(plan: Plan, settings: SearchConfig, rate: float | None, price: float | None) -> None:
    from tune.plan import search_cost

    click.echo("\ncost")
    rows: list[tuple[Cell, ...]] = []
    preparation = plan.preparation
    rows.append(_cost_row("preparation", preparation, preparation, plan.ranks, rate, price))
    if plan.cost is not None:
        rows.append(_cost_row("one run", *plan.cost, plan.ranks, rate, price))
        trials = search_cost(settings, plan.work)
        name = f"search of {counted(settings.search.num_trials, 'trial')}, expected"
        rows.append(_cost_row(name, preparation + trials[0], preparation + trials[1], plan.ranks, rate, price))
    headers = ["", "gradient evaluations", "tokens read", "hours", "cost"]
    count = 3 if rate is None else 4 if price is None else 5
    print_table([Column(header) for header in headers[:count]], [row[:count] for row in rows])
    if plan.cost is not None:
        least, most = plan.cost
        if least != most:
            cause = "the range test of the rates"
            if least.gradient_evaluations != most.gradient_evaluations:
                cause = "the similarity of the gradients in each step, or the stop of forgetting"
            click.echo(f"A run needs between the first and the second number, which depends on {cause}.")
        click.echo(
            "Tokens include those of the scores. The numbers of a search are expected values, and include the "
            "preparation. Trials draw their settings, so a search may need less or more."
        )
    else:
        click.echo("The method does not declare its passes, so a run's cost is unknown.")


def _cost_row(
    name: str, least: Cost, most: Cost, ranks: int, rate: float | None, price: float | None
) -> tuple[Cell, ...]:
    low, high = (cost.hours(rate or 1.0) for cost in (least, most))
    paid = ranks * (price or 0.0)
    return (
        name,
        _range(least.gradient_evaluations, most.gradient_evaluations),
        _range(least.tokens, most.tokens),
        f"{low:.2g} – {high:.2g}" if low != high else f"{low:.2g}",
        f"{low * paid:.2f} – {high * paid:.2f}",
    )


def _show_verdict(plan: Plan) -> bool:
    from ofmu.plan.check import gib

    if plan.budget is None:
        click.echo(f"\na rank needs {gib(plan.needed)}; give --memory to compare it with a GPU")
        return True
    if plan.fits:
        click.echo(f"\nfits: a rank needs {gib(plan.needed)} of {gib(plan.budget)}")
        _show_unprepared(plan)
        return True
    click.echo(f"\ndoes not fit: a rank needs {gib(plan.needed)} of {gib(plan.budget)}")
    changes = list(plan.candidates())
    hosts = any(entry.offloads for entry in changes)
    print_table(
        # A change may be long, so it comes last.
        [
            Column("needs", justify="right"),
            *([Column("host", justify="right")] if hosts else []),
            Column(""),
            Column("change"),
        ],
        [
            (
                gib(entry.needed),
                *([gib(entry.host) if entry.offloads else ""] if hosts else []),
                "fits" if entry.needed <= plan.budget else "",
                " ".join(entry.overrides),
            )
            for entry in changes
        ],
    )
    # The changes that alter the results least come first.
    fitting = [entry for entry in changes if entry.needed <= plan.budget]
    if fitting:
        first = fitting[0]
        host = f", with {gib(first.host)} of host memory a rank" if first.offloads else ""
        click.echo(f"of those that fit, this alters the results least: {' '.join(first.overrides)}{host}")
        within = next((entry for entry in fitting if not entry.offloads), None)
        if within is not None and first.offloads:
            click.echo(f"of those that fit without offload: {' '.join(within.overrides)}")
    else:
        click.echo("none of these changes makes it fit")
    _show_unprepared(plan)
    return False


def _show_unprepared(plan: Plan) -> None:
    """Say so if the target and the retrained model cannot be made here."""
    from ofmu.plan.check import gib

    phase = plan.unprepared
    if phase is None or plan.budget is None:
        return
    change = plan.preparation_change()
    shorter = "" if change is None else f", or set {' '.join(change.overrides)}, which needs {gib(change.needed)}"
    click.echo(
        f"The preparation does not fit: it needs {gib(phase.needed(on_gpu=plan.on_gpu))} of {gib(plan.budget)}. Run "
        f"'ofmu prepare' where it fits, and share its cache (cache_dir){shorter}"
    )


def _range(least: float, most: float) -> str:
    return _count(least) if round(least) == round(most) else f"{_count(least)} – {_count(most)}"


def _count(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= 1000 * size and unit == "T":
            return f"{number:.2g}"
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:,.0f}"
