"""Whether a directory holds the run that is to be made, or another one."""

from __future__ import annotations

from pathlib import Path

from ofmu.content import ROWS, check_content, content_of, read_content
from ofmu.errors import RunError
from ofmu.io.text import listed
from ofmu.provenance import differing_settings
from ofmu.run_config import UnlearnConfig
from ofmu.run_files import RunFiles, check_output

_KINDS = {"comparison": "compare", "search": "search"}
"""The section that tells the config of another directory from that of a run."""


def check_earlier_run(config: UnlearnConfig, directory: Path, *, with_models: bool) -> dict[str, str] | None:
    """Check that a directory holds no other run than this one.

    Return the hashes of the content that the run starts from; None for a new run, whose files are not read.

    Raises:
        RunError: the directory holds a run under another config or on other content, or files that no run made.
    """
    check_output(directory)
    files = RunFiles(directory)
    stored = files.read_config()
    wanted = config.model_dump(mode="json")
    if stored is not None and stored != wanted:
        differ = listed(differing_settings(stored, wanted) or ["its keys"], most=4)
        other = f"run under another config, which differs in {differ}"
        held = next((kind for kind, section in _KINDS.items() if section in stored), other)
        raise RunError(f"{directory} holds a {held}: name another directory for this run")
    report, earlier = files.read_report(), read_content(directory)
    if report is not None and not earlier:
        # Runs of older versions stored the hash of the rows only.
        earlier = {ROWS: report["data_hash"]} if "data_hash" in report else {}
    if not earlier:
        return None
    content = content_of(config, models=with_models)
    check_content(directory, earlier, content)
    return content
