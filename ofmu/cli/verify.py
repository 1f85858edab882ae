"""``ofmu verify``: check the signature and the hashes of evidence."""

from __future__ import annotations

from pathlib import Path

import click

_FILE = click.Path(path_type=Path)


@click.command("verify")
@click.argument("directory", type=_FILE)
@click.option("--public-key", type=_FILE, metavar="FILE", help="PEM file of the key that must have signed.")
@click.option("--model", type=_FILE, metavar="DIR", help="A model that must be the one of the evidence.")
@click.option(
    "--earlier",
    type=_FILE,
    metavar="DIR",
    multiple=True,
    help="Evidence of an earlier request; repeatable.",
)
def verify_command(directory: Path, public_key: Path | None, model: Path | None, earlier: tuple[Path, ...]) -> None:
    """Check the evidence in DIRECTORY, which ofmu forget wrote. The exit status is 1 if something is wrong.

    Without --public-key the check shows only that nobody changed the evidence after somebody signed it. The evidence of
    earlier requests is checked where it lies, and in the directories of --earlier.
    """
    # pydantic and cryptography are slow to import, and the help does not need them.
    from ofmu.erasure.evidence_files import PUBLIC_KEY, RECORD, SIGNATURE
    from ofmu.erasure.links import check_links
    from ofmu.erasure.verify import verify_evidence
    from ofmu.io.text import listed

    found = verify_evidence(directory, public_key=public_key, model=model)
    record = found.record
    links = check_links(record, found.directory, earlier)
    click.echo(f"Request {record.request.id}, measured {record.finished} by {record.operator} on {record.host}")
    names = [RECORD, *sorted(record.files)]
    be = "are as they were" if record.files else "is as it was"
    click.echo(f"{listed(names, most=len(names))} {be} signed, by the key with SHA-256 {found.signer}")
    click.echo(f"{SIGNATURE} is that signature, and {PUBLIC_KEY} is that key")
    if found.review is not None:
        click.echo(f"{found.review} is the file that was reviewed")
    if model is not None:
        click.echo(f"{model} is the model of the evidence")
    if links.checked:
        click.echo(f"The evidence of these earlier requests is that which it followed: {', '.join(links.checked)}")
    if links.unchecked:
        click.echo(
            f"The evidence of these earlier requests was not checked: {', '.join(links.unchecked)}; give it with "
            "--earlier DIR"
        )
    if not found.is_known_signer:
        click.echo("Whose key this is was not checked: give --public-key FILE, or compare the SHA-256 with its owner's")
