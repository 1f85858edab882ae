"""``ofmu forget``: a request to delete data, from its start to evidence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ofmu.cli.continuing import after_full_disk
from ofmu.cli.params import FiniteNumber, Folder, warn_if_given_twice

if TYPE_CHECKING:
    from ofmu.erasure.evidence import Evidence

_FILE = click.Path(path_type=Path)


@click.command("forget")
@click.argument("model")
@click.argument("settings", nargs=-1, metavar="[SECTION.KEY=VALUE]...")
@click.option("--rows", type=_FILE, metavar="FILE", help="The rows to forget.")
@click.option("--person", metavar="NAME", help="Forget the rows of --corpus that name this person.")
@click.option("--questions", type=_FILE, metavar="FILE", help="Forget the model's own answers to these questions.")
@click.option("--corpus", type=_FILE, metavar="FILE", help="Rows on which the model was trained.")
@click.option("--retain", type=_FILE, metavar="FILE", help="Rows to retain; default: of --corpus, else generated.")
@click.option(
    "--holdout", type=_FILE, metavar="FILE", help="Rows that no model was trained on, for membership attacks."
)
@click.option(
    "--base", metavar="MODEL", help="The model before training on the rows; a reference is retrained from it."
)
@click.option(
    "--after",
    type=_FILE,
    metavar="DIR",
    help="The --output of the request before this one, whose result MODEL is: its rows stay forgotten.",
)
@click.option("--with-possible", is_flag=True, help="Forget rows with a part of the person's name too.")
@click.option("--config", type=_FILE, metavar="FILE", help="YAML file with other sections, such as engine and method.")
@click.option("--budget", type=FiniteNumber(0, min_open=True), metavar="HOURS", help="Time for the whole request.")
@click.option("--trials", type=click.IntRange(3), metavar="N", help="Trials; default: 20, or as the budget allows.")
@click.option(
    "--confirm", type=click.IntRange(0), metavar="S", default=2, show_default=True, help="Further seeds of the best."
)
@click.option(
    "--min-utility",
    type=FiniteNumber(0, 1),
    metavar="SHARE",
    default=0.9,
    show_default=True,
    help="Least utility of the result, as a share of the model's.",
)
@click.option("--key", type=_FILE, metavar="FILE", help="Ed25519 private key in PEM that signs the evidence.")
@click.option("--request-id", metavar="ID", help="The request's name in the evidence; default: a random one.")
@click.option("--show-rows", is_flag=True, help="Put the texts of the forget rows and the name into the evidence.")
@click.option("--output", required=True, type=Folder(), metavar="DIR", help="A directory for this request only.")
def forget_command(
    model: str,
    settings: tuple[str, ...],
    rows: Path | None,
    person: str | None,
    questions: Path | None,
    corpus: Path | None,
    retain: Path | None,
    holdout: Path | None,
    base: str | None,
    after: Path | None,
    with_possible: bool,
    config: Path | None,
    budget: float | None,
    trials: int | None,
    confirm: int,
    min_utility: float,
    key: Path | None,
    request_id: str | None,
    show_rows: bool,
    output: Path,
) -> None:
    """Make MODEL forget rows, a person or its answers to questions, and write evidence to DIR/evidence.

    The command builds the rows, searches settings, picks one by a stated rule, runs it on further seeds, and attacks
    the model. An interrupted command continues when it is called again. ofmu verify checks the evidence.
    """
    warn_if_given_twice(settings)
    # pydantic is slow to import, and the help does not need it.
    from ofmu.erasure.request import ErasureRequest
    from ofmu.run_config import read_overridden

    request = ErasureRequest(
        rows=rows,
        person=person,
        questions=questions,
        corpus=corpus,
        retain=retain,
        holdout=holdout,
        with_possible=with_possible,
    )
    mapping = read_overridden(config, settings)

    # Ray and Optuna take seconds to import, and the errors above do not need them.
    from rich.console import Console

    from tune.callbacks.console import ConsoleCallback
    from tune.erasure.forget import ForgetCallbacks, ForgetOptions, forget

    options = ForgetOptions(
        budget_hours=budget, trials=trials, confirm_seeds=confirm, min_utility=min_utility, key=key, show_rows=show_rows
    )
    # A request starts several searches, and a terminal shows one live table only.
    console = ConsoleCallback(Console())
    again = f"the same command, with --output {output}, continues it"
    try:
        with after_full_disk(lambda: again):
            evidence = forget(
                model,
                request,
                output,
                after=after,
                base=base,
                settings=mapping,
                options=options,
                request_id=request_id,
                callbacks=ForgetCallbacks(print_line=console.print_line, search=[console]),
            )
    except KeyboardInterrupt:
        click.echo(f"Interrupted: {again}", err=True)
        raise SystemExit(130) from None
    _show(evidence, output)


def _show(evidence: Path, output: Path) -> None:
    from ofmu.erasure.evidence_files import PAGE
    from ofmu.erasure.verify import read_intact

    record = read_intact(evidence)
    _show_figures(record)
    if record.chain is not None:
        from ofmu.reports.chain import print_chain, utility_line

        name = list(record.search.objectives)[1]
        known = [each for each in record.metrics if each.name == name]
        lines = [utility_line(each.name, each.first_target, each.target, each.result) for each in known]
        print_chain(record.chain, record.request.id, lines)
    click.echo(f"The model after unlearning is in {output / 'model'}")
    click.echo(f"The evidence is in {evidence}; read {evidence / PAGE}")
    if record.signature is None:
        click.echo("The evidence is not signed: the same command with --key FILE signs it")
    else:
        click.echo(f"Signed by the key with SHA-256 {record.signature.public_key_sha256}; check it with ofmu verify")
    click.echo(f"Apart from {evidence.name}, {output} holds rows and answers in clear: delete what is not needed")


def _show_figures(record: Evidence) -> None:
    """Print the two objectives of the model beside those of the target, and warn if little of the utility is left."""
    from ofmu.reports.numbers import metric_text
    from ofmu.reports.verdict import great_loss

    known = {each.name: each for each in record.metrics}
    names = [name for name in list(record.search.objectives)[:2] if name in known]
    for name in names:
        each = known[name]
        values = [metric_text(name, value, 3) for value in (each.result, each.target)]
        click.echo(f"{name} ({each.better} is better): {values[0]}, and {values[1]} before unlearning")
    result, target = ({name: getattr(known[name], role) for name in names} for role in ("result", "target"))
    # The first objective is what is forgotten.
    for name in names[1:]:
        if lost := great_loss(result, target, name):
            click.echo(f"Warning: this model {lost}: a higher --min-utility asks for more", err=True)
