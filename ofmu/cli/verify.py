"""``ofmu verify``: check the signature and the hashes of evidence."""

from __future__ import annotations

from pathlib import Path

import click

_FILE = click.Path(path_type=Path)


@click.command("verify")
@click.argument("directory", type=_FILE)
@click.option("--public-key", type=_FILE, metavar="FILE", help="PEM file of the key that must have signed.")
@click.option("--model", type=_FILE, metavar="DIR", help="A model that must be the one of the evidence.")
def verify_command(directory: Path, public_key: Path | None, model: Path | None) -> None:
    """Check the evidence in DIRECTORY, which ofmu forget wrote. The exit status is 1 if something is wrong.

    Without --public-key the check shows only that nobody changed the evidence after somebody signed it.
    """
    # pydantic and cryptography are slow to import, and the help does not need them.
    from ofmu.erasure.verify import verify_evidence

    found = verify_evidence(directory, public_key=public_key, model=model)
    record = found.record
    click.echo(f"Request {record.request.id}, measured {record.finished} by {record.operator} on {record.host}")
    click.echo(f"{len(record.files) + 1} files are as they were signed, by the key with SHA-256 {found.signer}")
    if model is not None:
        click.echo(f"{model} is the model of the evidence")
    if not found.is_known_signer:
        click.echo("Whose key this is was not checked: give --public-key FILE, or compare the SHA-256 with its owner's")
