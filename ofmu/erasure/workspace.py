"""The directory of one request: its rows, its search, the result, the attacks and the evidence."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ofmu.chain.rows import EarlierRows, read_earlier_rows, write_earlier
from ofmu.data.config import ColumnsConfig
from ofmu.data.files import read_records, read_rows, row_from_record
from ofmu.data.records import json_line, json_lines, record_of
from ofmu.data.rows import RowSet
from ofmu.erasure.request_rows import RequestRows
from ofmu.errors import RunError
from ofmu.io.files import storage_errors, write_json, write_text
from ofmu.io.folders import new_folder
from ofmu.io.text import listed
from ofmu.provenance import differing_settings
from ofmu.run_files import check_is_no_link, check_output, made_by_ofmu, read_stored, stored_values

STATE = "request.json"
ROWS, SEARCH, RESULT, EVALUATIONS, EVIDENCE = "rows", "search", "model", "evaluations", "evidence"
SETTINGS_BY_KEY = "settings_by_key"
"""The entry of ``asked`` with a hash of each setting, by dotted key. The hash of all of them is in ``settings``."""
_NAMES = (STATE, ROWS, SEARCH, RESULT, EVALUATIONS, EVIDENCE)
FORMAT = "ofmu-request/1"
_ROWS_STATE = "rows.json"
_REVIEW = "review.jsonl"
_EARLIER = "earlier"
_RUNS = "runs"
_REVIEWED = ("number", "decision", "reason")
_SETS = ("forget", "retain", "holdout")


@dataclass(frozen=True)
class Workspace:
    """Paths, readers and writers of a request's directory. Every writer raises StorageError if the disk refuses.

    ``request.json`` is written first, so its presence says that the directory is ours.
    """

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Workspace:
        """Return the directory of a new or an earlier request. Nothing is written.

        Raises:
            RunError: the directory holds files that no request made, or a link.
        """
        home = cls(Path(path).absolute())
        check_is_no_link(home.path / STATE)
        if not home.path.is_dir() or not home.is_ours():
            if made_by_ofmu(home.path):
                raise RunError(f"{path} holds a run and no request: name a new directory for the request")
            check_output(path, _NAMES)
        for name in _NAMES:
            check_is_no_link(home.path / name)
        return home

    @property
    def search(self) -> Path:
        """The search's run directory."""
        return self.path / SEARCH

    @property
    def result(self) -> Path:
        """The model after unlearning."""
        return self.path / RESULT

    @property
    def evidence(self) -> Path:
        """The evidence, which holds no text of a row unless the user asked for it."""
        return self.path / EVIDENCE

    @property
    def review(self) -> Path:
        """The rows of the corpus that somebody should look at."""
        return self.path / ROWS / _REVIEW

    def evaluation(self, role: str) -> Path:
        """Return the directory of the evaluation of one model."""
        return self.path / EVALUATIONS / role

    def rows_file(self, name: str) -> Path:
        """Return the file of a set of rows."""
        return self.path / ROWS / f"{name}.jsonl"

    def changes(self, asked: Mapping[str, Any], request_id: str | None) -> list[str]:
        """Return the parts in which a request differs from the stored one; empty for a new directory."""
        state = self.state()
        if state is None:
            return []
        with stored_values(self.path / STATE):
            stored = state["asked"]
            changed = [key for key in asked if key != SETTINGS_BY_KEY and stored.get(key) != asked[key]]
            # Older versions stored one hash of all settings only.
            before, now = stored.get(SETTINGS_BY_KEY), asked.get(SETTINGS_BY_KEY)
            if "settings" in changed and before is not None and now is not None:
                names = differing_settings(before, now)
                changed[changed.index("settings")] = f"settings ({listed(names, most=4)})" if names else "settings"
        return [*changed, "id"] if request_id is not None and request_id != state["id"] else changed

    @property
    def has_run(self) -> bool:
        """Whether more than the rows of a request was made."""
        return any(path.exists() for path in (self.search, self.result, self.evidence, self.path / EVALUATIONS))

    def discard(self) -> None:
        """Delete a stored request of which nothing has run, with its rows."""
        assert not self.has_run
        with storage_errors(self.path):
            shutil.rmtree(self.path / ROWS, ignore_errors=True)
            (self.path / STATE).unlink()

    def check(self, asked: Mapping[str, Any], request_id: str | None) -> None:
        """Check that an earlier start was for the same request. A new directory passes.

        Raises:
            RunError: the directory holds another request.
        """
        changed = self.changes(asked, request_id)
        if changed:
            raise RunError(
                f"{self.path} holds another request, which differs in {', '.join(changed)}: name a new directory, or "
                "give the same options and files again"
            )

    def start(
        self,
        asked: Mapping[str, Any],
        request_id: str | None,
        hash_key: bytes,
        places: Mapping[str, str | None] | None = None,
    ) -> None:
        """Store a new request. What is stored already stays.

        Args:
            asked: what the result depends on, as JSON values. It holds no personal data.
            request_id: the request's name. None: a random one.
            hash_key: the key of the hashes.
            places: where the first target of the chain lies, and the directory of the request before this one.
        """
        if self.state() is None:
            stored = {"format": FORMAT, "id": request_id or str(uuid.uuid4()), "received": _now()}
            stored["hash_key"] = hash_key.hex()
            self._store(stored | {"asked": dict(asked), "places": dict(places or {}), "seconds": {}})

    def note(self, **values: Any) -> None:
        """Store further values in ``request.json``. They must hold no personal data."""
        self._store((self.state() or {}) | values)

    def state(self) -> dict[str, Any] | None:
        """Return what ``request.json`` holds; None for a new request."""
        return read_stored(self.path / STATE)

    def _store(self, state: Mapping[str, Any]) -> None:
        # The file holds the key of the hashes, with which names could be guessed.
        write_json(self.path / STATE, dict(state), private=True)

    def hash_key(self) -> bytes:
        """Return the random key of the hashes: the stored one, or a new one for a new request."""
        state = self.state()
        if state is None:
            return secrets.token_bytes(32)
        with stored_values(self.path / STATE):
            return bytes.fromhex(state["hash_key"])

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the seconds of the block to those of a step, also if the block is interrupted."""
        started = time.monotonic()
        try:
            yield
        finally:
            state = self.state() or {}
            seconds = dict(state.get("seconds") or {})
            seconds[step] = round(seconds.get(step, 0.0) + time.monotonic() - started, 3)
            self._store(state | {"seconds": seconds})

    def finish(self) -> str:
        """Return when the measurements were complete. The first call stores the time."""
        state = self.state() or {}
        if "finished" not in state:
            state = state | {"finished": _now()}
            self._store(state)
        return str(state["finished"])

    def write_rows(self, rows: RequestRows, *, person: str | None = None, earlier: Sequence[EarlierRows] = ()) -> None:
        """Write the rows in one step, with those of the earlier requests of the chain.

        Args:
            rows: the rows of this request.
            person: the person whom the request names; None if it names none.
            earlier: the earlier requests of the chain, the oldest first, and the runs before them.
        """
        sets = {name: found for name in _SETS if (found := getattr(rows, name)) is not None}
        with storage_errors(self.path / ROWS), new_folder(self.path / ROWS) as folder:
            for name, found in sets.items():
                write_text(folder / f"{name}.jsonl", json_lines(found.rows))
            reviewed = (
                {"number": each.number, "decision": each.decision, "reason": each.reason, **record_of(each.row)}
                for each in rows.review
            )
            review = "".join(map(json_line, reviewed))
            write_text(folder / _REVIEW, review)
            stored = {
                "review_hash": _text_hash(review),
                "hashes": {name: found.content_hash for name, found in sets.items()},
                "origins": dict(rows.origins),
                "retain_source": rows.retain_source,
                "notes": list(rows.notes),
                "person": person,
            }
            # The evidence names each earlier request, and no run.
            for name, is_run in ((_RUNS, True), (_EARLIER, False)):
                chosen = [each for each in earlier if each.is_run == is_run]
                if chosen:
                    (folder / name).mkdir()
                    write_earlier(folder / name, chosen)
            write_json(folder / _ROWS_STATE, stored)

    def read_rows(self) -> RequestRows | None:
        """Return the rows that were written, without those to review; None for a new request.

        Raises:
            RunError: a file was changed after the start.
        """
        file = self.path / ROWS / _ROWS_STATE
        stored = read_stored(file)
        if stored is None:
            return None
        with stored_values(file):
            sets = {name: RowSet(name, read_rows(self.rows_file(name), ColumnsConfig())) for name in stored["hashes"]}
            for name, found in sets.items():
                if found.content_hash != stored["hashes"][name]:
                    raise RunError(
                        f"{self.rows_file(name)} was changed after the start of the request: restore it, or start "
                        "another request with --rows FILE in a new directory"
                    )
            return RequestRows(
                forget=sets["forget"],
                retain=sets["retain"],
                holdout=sets.get("holdout"),
                origins=dict(stored["origins"]),
                retain_source=stored["retain_source"],
                notes=tuple(stored["notes"]),
            )

    def chain_rows(self) -> tuple[EarlierRows, ...]:
        """Return what a later request must know: the rows of this request and of those before it, the oldest first.

        Raises:
            RunError: the rows were deleted, changed or damaged.
        """
        rows, state = self.read_rows(), self.state()
        if rows is None or state is None:
            raise RunError(
                f"{self.path / ROWS} is gone, so the rows that must stay forgotten are unknown: restore it from a copy"
            )
        file = self.path / ROWS / _ROWS_STATE
        with stored_values(file):
            person = (read_stored(file) or {})["person"]
        self.read_review()
        with stored_values(self.review):
            reviewed = [dict(record) for record in read_records(self.review)]
            left_out = tuple(
                row_from_record(
                    {name: value for name, value in record.items() if name not in _REVIEWED},
                    ColumnsConfig(),
                    str(self.review),
                    number,
                )
                for number, record in enumerate(reviewed, start=1)
                if record["decision"] == "left out"
            )
        with stored_values(self.path / STATE):
            own = EarlierRows(
                id=state["id"], forget=rows.forget.rows, left_out=left_out, person=person, scoring=state["scoring"]
            )
        return (*self.earlier_rows(), own)

    def read_review(self) -> str:
        """Return the text of the file of rows to review.

        Raises:
            RunError: the file is missing, cannot be read, or was changed after it was written.
        """
        file = self.path / ROWS / _ROWS_STATE
        with stored_values(file):
            # Requests of older versions have no hash of this file.
            expected = (read_stored(file) or {}).get("review_hash")
        try:
            text = self.review.read_bytes().decode()
        except (OSError, ValueError) as error:
            raise RunError(f"{self.review} cannot be read ({error}): restore it from a copy") from error
        if expected is not None and _text_hash(text) != expected:
            raise RunError(f"{self.review} was changed after it was written: restore it from a copy")
        return text

    def earlier_rows(self) -> tuple[EarlierRows, ...]:
        """Return the rows of the requests before this one, the oldest first; empty for a first request.

        Raises:
            RunError: they were changed or damaged.
        """
        return read_earlier_rows(self.path / ROWS / _EARLIER)

    def rows_of_runs(self) -> tuple[EarlierRows, ...]:
        """Return the rows that were forgotten before the first request of the chain.

        Raises:
            RunError: they were changed or damaged.
        """
        return tuple(replace(each, is_run=True) for each in read_earlier_rows(self.path / ROWS / _RUNS))

    def is_ours(self) -> bool:
        """Return whether a request is stored here."""
        state = self.state()
        return state is not None and state.get("format") == FORMAT


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
