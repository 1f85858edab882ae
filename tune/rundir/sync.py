"""A search whose run directory is at a URI: what the driver keeps in step with it, and how a trial works on it."""

from __future__ import annotations

import hashlib
import inspect
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.storage.lease import LOCK, Lease
from cluster.storage.mirror import Mirror, below
from ofmu.config.files import read_mapping
from ofmu.errors import PrunedError, StorageError
from ofmu.io.cache import Cache, cache_root
from ofmu.io.files import write_json
from tune.rundir.prepared import fetch_prepared
from tune.study.searcher import finite_only, read_metrics

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from ofmu.preparer import Prepared
    from ofmu.run_config import UnlearnConfig
    from tune.execution.trainable import Executor

STUDY = "study.log"
HEAVY = ("model", "checkpoints", "ray_train")
"""Folders of a trial that the driver never fetches."""
_LOCAL_ONLY = ("trials", "ray", STUDY, f"{STUDY}.lock")
"""The study is pushed by itself; a dashboard that writes to the study locks the file."""
_PAUSE = 1.0
"""Seconds at least from the end of one push of the driver's files to the next."""


def folder_of(uri: str, use: str) -> Path:
    """Return this machine's folder for one use of the run at ``uri``; it lies in the cache."""
    key = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]
    return cache_root(None) / "remote" / key / use


class DriverFiles:
    """The files of a search's driver, kept in step with a URI by a thread: the search never waits for a copy.

    While it is open, the process holds the URI's lease.

    Raises:
        RunError: another search is at work on the URI.
        StorageError: the storage refuses.
    """

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._lease = Lease(mirror, "search")
        self._wake, self._ended = threading.Event(), threading.Event()
        self._failure: StorageError | None = None
        self._unwanted: set[str] = set()
        self._deleted: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="push to storage", daemon=True)

    def open(self) -> None:
        """Take the lease, replace what lies here by what is at the URI, and start to keep in step."""
        self._lease.acquire()
        try:
            self._fetch()
        except BaseException:
            self._lease.release()
            raise
        self._thread.start()

    def close(self, *, orderly: bool) -> None:
        """Send what has not been sent, and give the lease back; unless ``orderly``, a refusal is passed over."""
        self._ended.set()
        self._wake.set()
        self._thread.join()
        try:
            if orderly:
                self.check()
            self._push()
            self._lease.release()
        except StorageError:
            if orderly:
                raise

    def changed(self, *, check: bool) -> None:
        """Note that files have changed; with ``check``, raise StorageError as :meth:`check` does."""
        self._wake.set()
        if check:
            self.check()

    def check(self) -> None:
        """Raise StorageError where a push failed or another search has taken over."""
        if self._failure is not None:
            raise self._failure
        if self._lease.lost is not None:
            raise StorageError(self._lease.lost)

    def delete(self, folder: str) -> None:
        """Note that nothing below ``folder`` is wanted any more."""
        if folder not in self._deleted:
            self._deleted.add(folder)
            self._unwanted.add(folder)
            self._wake.set()

    def fetch_trial(self, name: str) -> None:
        """Fetch the small files of a trial that ran elsewhere."""
        self._mirror.pull([each for each in self._mirror.files(f"trials/{name}") if not set(HEAVY) & set(_parts(each))])

    def _fetch(self) -> None:
        _empty(self._mirror.local)
        names = self._mirror.files()
        self._mirror.pull([each for each in names if "/" not in each and each != LOCK])
        ended = {_parts(each)[1] for each in names if each.endswith(("/metrics.json", "/pruned.json", "/error.txt"))}
        heavy = {"/".join(_parts(each)[:3]) for each in names if each.startswith("trials/")}
        # a search of thousands of trials would otherwise ask again for what is long gone
        self._deleted = {f"trials/{trial}/{name}" for trial in ended for name in HEAVY} - heavy
        (self._mirror.local / "trials").mkdir(parents=True, exist_ok=True)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wake.wait()
            self._wake.clear()
            started = time.monotonic()
            try:
                self._push()
            except StorageError as error:
                self._failure = error
                return
            # Copying a study of ten thousand trials takes long, so it must not be copied without pause.
            self._ended.wait(max(_PAUSE, 4 * (time.monotonic() - started)))

    def _push(self) -> None:
        """Send the study first, then the tables that were made from it, the trials' own accounts, and deletions."""
        local = self._mirror.local
        if not local.is_dir():
            return
        if (local / STUDY).is_file():
            self._mirror.push_file(STUDY)
        self._mirror.push(without=_LOCAL_ONLY)
        for path in local.glob("trials/*/error.txt"):
            self._mirror.push_file(path.relative_to(local).as_posix())
        while self._unwanted:
            self._mirror.delete(self._unwanted.pop())


class RemoteTrials:
    """Wraps an executor so that a trial's files come from and go to a URI, on whatever node it runs.

    The trial's directory is emptied first: what is at the URI counts. An executor with a keyword ``mirror`` is given
    the trial's mirror, and keeps its checkpoints there.
    """

    def __init__(self, executor: Executor, uri: str) -> None:
        self._executor, self._uri = executor, uri
        self._fetched: Prepared | None = None
        """What this process has fetched: all trials of a search start from the same, and it is hashed when fetched."""

    def __call__(
        self, config: UnlearnConfig, cluster: ClusterConfig, trial_dir: Path, prepared: Any, **further: Any
    ) -> Mapping[str, Any]:
        """Run one trial and return its metrics; a finished one returns at once.

        Raises:
            StorageError: the storage refuses; whatever the executor raises.
        """
        mirror = Mirror(below(self._uri, f"trials/{trial_dir.name}"), trial_dir)
        self._fetch(mirror, config)
        finished = read_metrics(trial_dir)
        if finished is not None:
            return finished
        execute: Callable[..., Mapping[str, Any]] = self._executor
        if "mirror" in inspect.signature(execute).parameters:
            execute = partial(execute, mirror=mirror)
        started = time.monotonic()
        try:
            metrics = dict(execute(config, cluster, trial_dir, self._local(prepared), **further))
        except (PrunedError, ValueError):
            with suppress(StorageError):
                mirror.push(without=HEAVY)
            raise
        metrics.setdefault("seconds", time.monotonic() - started)
        if not (trial_dir / "metrics.json").exists():
            write_json(trial_dir / "metrics.json", {"metrics": finite_only(metrics)})
        mirror.push(without=("checkpoints", "ray_train"))
        mirror.delete("checkpoints")
        for name in HEAVY:
            shutil.rmtree(trial_dir / name, ignore_errors=True)
        return metrics

    def close(self) -> None:
        """Let the executor end what it keeps between trials."""
        close = getattr(self._executor, "close", None)
        if close is not None:
            close()

    def _fetch(self, mirror: Mirror, config: UnlearnConfig) -> None:
        """Empty the directory but for its lock, and fill it; an attempt that no study knows any more is dropped."""
        _empty(mirror.local)
        mirror.pull([name for name in mirror.files() if _parts(name)[0] not in HEAVY])
        settings = mirror.local / "config.yaml"
        if settings.is_file() and read_mapping(str(settings)) != config.model_dump(mode="json"):
            mirror.delete("")
            _empty(mirror.local)

    def _local(self, prepared: Any) -> Any:
        return (
            prepared
            if prepared is None
            else fetch_prepared(prepared, self._uri, Cache(folder_of(self._uri, "prepared")))
        )


def _empty(folder: Path) -> None:
    """Remove all that is not hidden: the lock of who works here is."""
    for path in folder.glob("[!.]*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _parts(name: str) -> tuple[str, ...]:
    return tuple(name.split("/"))
