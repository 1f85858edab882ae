"""An erasure request: what a model must forget, and the files that the user gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ofmu.errors import ConfigError

Kind = Literal["rows", "person", "questions"]


@dataclass(frozen=True, kw_only=True)
class ErasureRequest:
    """What a model must forget, and what the user has to build the rows from.

    Raises:
        ConfigError: not exactly one of ``rows``, ``person`` and ``questions`` is given, or a person without a corpus.
    """

    rows: Path | None = None
    """File of the rows to forget."""
    person: str | None = None
    """Name of a person. The rows of ``corpus`` that name the person are forgotten."""
    questions: Path | None = None
    """File of questions. The model's own answers to them are forgotten."""
    corpus: Path | None = None
    """File of the rows on which the model was trained."""
    retain: Path | None = None
    """File of the rows to retain. None: rows of the corpus, else the model's own answers to neutral questions."""
    holdout: Path | None = None
    """File of rows on which no model was trained, for membership attacks."""
    with_possible: bool = False
    """Whether rows that hold only a part of the person's name are forgotten too."""

    def __post_init__(self) -> None:
        given = [name for name in ("rows", "person", "questions") if getattr(self, name) is not None]
        if len(given) != 1:
            what = "none of them is given" if not given else f"--{' and --'.join(given)} are given"
            raise ConfigError(f"A request is --rows FILE, --person NAME or --questions FILE, and {what}: give one")
        if self.person is not None and self.corpus is None:
            raise ConfigError(f"--person '{self.person}' needs --corpus FILE, the rows in which the person is searched")
        if self.with_possible and self.person is None:
            raise ConfigError("--with-possible is for --person: leave it out")

    @property
    def kind(self) -> Kind:
        """What the request names."""
        return "rows" if self.rows is not None else "person" if self.person is not None else "questions"

    @property
    def files(self) -> dict[str, Path]:
        """The given files, by the name of their option."""
        named = {name: getattr(self, name) for name in ("rows", "questions", "corpus", "retain", "holdout")}
        return {name: path for name, path in named.items() if path is not None}
