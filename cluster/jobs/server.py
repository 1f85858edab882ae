"""Jobs on a Ray cluster, through its job server: submitted, listed, followed, stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray.job_submission import JobSubmissionClient

from ofmu.errors import ClusterError, ConfigError, RunError, nearest_name

if TYPE_CHECKING:
    from cluster.jobs.working_dir import Package

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 60.0
"""How long a job is still followed while its server does not answer, as when the head restarts."""
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True)
class Job:
    """One job as its server describes it."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    command: str
    message: str = ""
    started: float | None = None
    """Unix time in seconds."""
    ended: float | None = None
    exit_code: int | None = None

    @property
    def is_over(self) -> bool:
        """Return whether the status can no longer change."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def exit_status(self) -> int:
        """Return what a shell would get from the job's command; 128 + n for one that signal n ended."""
        if self.status == "SUCCEEDED":
            return 0
        code = self.exit_code or 1
        return 128 - code if code < 0 else code


class JobServer:
    """A cluster's job server, found to answer when this object is made."""

    def __init__(self, address: str | None = None) -> None:
        """Find the server.

        Args:
            address: ``http://HOST:8265``; None takes $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS, or this machine.

        Raises:
            ClusterError: nothing answers there, something else does, or the token is missing or wrong.
        """
        # its notes on packages and versions would stand between a job's own lines
        for name in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
        self.address = _server_url(address)
        headers = _token_header()
        self.ray_version = _version_of(self.address, headers)
        with _server_errors(self.address), _address_variables_set_aside():
            self._client = JobSubmissionClient(self.address, headers=headers)

    def submit(
        self,
        command: Sequence[str],
        package: Package,
        *,
        environment: Mapping[str, str] | None = None,
        cpus: float = 0.0,
        gpus: float = 0.0,
    ) -> str:
        """Upload the package, start ``python -m ofmu`` with ``command`` in it and return the job's ID.

        Args:
            environment: variables of the job and its workers; the server keeps them as long as the job's record.
            cpus: reserved for the command itself, which is the search's driver and prepares target and reference.
            gpus: the same; with neither the command runs on the head node.

        Raises:
            ClusterError: the server refuses the job.
        """
        with _server_errors(self.address), _address_variables_set_aside():
            job_id: str = self._client.submit_job(
                entrypoint=shlex.join(["python", "-m", "ofmu", *command]),
                runtime_env={
                    "working_dir": str(package.root),
                    "excludes": list(package.excludes),
                    # a followed log is written line by line
                    "env_vars": {"PYTHONUNBUFFERED": "1", **(environment or {})},
                },
                entrypoint_num_cpus=cpus or None,
                entrypoint_num_gpus=gpus or None,
            )
        return job_id

    def jobs(self) -> list[Job]:
        """Return the submitted jobs that the server knows, the oldest first.

        Raises:
            ClusterError: the server no longer answers.
        """
        with _server_errors(self.address):
            found = [_job_of(each) for each in self._client.list_jobs() if each.submission_id]
        return sorted(found, key=lambda job: job.started or float("inf"))

    def job(self, job_id: str) -> Job:
        """Return one job.

        Raises:
            RunError: the server has no such job.
            ClusterError: the server no longer answers.
        """
        known = {job.id: job for job in self.jobs()}
        if job_id not in known:
            hint = nearest_name(job_id, known) if known else "the cluster has no jobs"
            raise RunError(f"There is no job '{job_id}' on {self.address}: {hint}")
        return known[job_id]

    def logs(self, job_id: str) -> str:
        """Return what the job has printed so far; raises as :meth:`job` does."""
        self.job(job_id)
        with _server_errors(self.address):
            text: str = self._client.get_job_logs(job_id)
        return text

    def follow(self, job_id: str, write: Callable[[str], None]) -> Job:
        """Hand on what the job prints, from its start and as it comes, and return the job once it is over.

        Leaving by KeyboardInterrupt does not touch the job.

        Raises:
            RunError: the server has no such job.
            ClusterError: the server has not answered for a minute.
        """
        self.job(job_id)
        shown = 0

        def hand_on(text: str) -> None:
            nonlocal shown
            shown += len(text)
            write(text)

        silent_since: float | None = None
        while True:
            try:
                asyncio.run(self._tail(job_id, shown, hand_on))
                job = self.job(job_id)
                if job.is_over:
                    # the stream may end before the last lines are in it
                    hand_on(self.logs(job_id)[shown:])
                    return job
                silent_since = None
            except (ClusterError, RuntimeError, OSError, aiohttp.ClientError) as error:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > _PATIENCE_SECONDS:
                    raise _lost(self.address, error) from error
            time.sleep(_POLL_SECONDS)

    def stop(self, job_id: str) -> Job:
        """End a job, wait until it is over, and return it; one that is over already stays as it is.

        Raises:
            RunError: the server has no such job.
            ClusterError: the server no longer answers.
        """
        job = self.job(job_id)
        if job.is_over:
            return job
        with _server_errors(self.address):
            self._client.stop_job(job_id)
        while not job.is_over:
            time.sleep(_POLL_SECONDS)
            job = self.job(job_id)
        return job

    async def _tail(self, job_id: str, known: int, hand_on: Callable[[str], None]) -> None:
        """Stream the log until the job is over; its first ``known`` characters were handed on already."""
        stream = asyncio.create_task(self._stream(job_id, known, hand_on))
        while not (await asyncio.wait({stream}, timeout=_POLL_SECONDS))[0]:
            if (await asyncio.to_thread(self.job, job_id)).is_over:
                # the server notices some seconds later, and closes the stream only then
                stream.cancel()
        if not stream.cancelled():
            stream.result()

    async def _stream(self, job_id: str, known: int, hand_on: Callable[[str], None]) -> None:
        async for text in self._client.tail_job_logs(job_id):
            new = text[known:]
            known = max(0, known - len(text))
            if new:
                hand_on(new)


def chosen_environment(choices: Sequence[str]) -> dict[str, str]:
    """Return the variables that ``NAME`` (as it is set here) and ``NAME=VALUE`` choose.

    Raises:
        ConfigError: an entry is neither; the sentence never holds it, since it may be a secret in the wrong place.
    """
    chosen = {}
    for position, choice in enumerate(choices, start=1):
        name, given, value = choice.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or not (given or name in os.environ):
            raise ConfigError(
                f"--env option {position} of {len(choices)} is neither NAME=VALUE nor the name of a variable that is "
                "set here: correct it, or set the variable"
            )
        chosen[name] = value if given else os.environ[name]
    return chosen


def _server_url(address: str | None) -> str:
    source, chosen = "--address", address
    for name in _ADDRESS_VARIABLES:
        if chosen is None and os.environ.get(name):
            source, chosen = f"${name}", os.environ[name]
    chosen = chosen or DEFAULT_ADDRESS
    if "://" not in chosen and source == "--address":
        chosen = f"http://{chosen}"
    parts = urlsplit(chosen)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ClusterError(
            f"{source} '{chosen}' does not name a job server: give --address http://HOST:8265, the head's dashboard"
        )
    return chosen.rstrip("/")


def _token_header() -> dict[str, str]:
    """Return the header of a cluster's token, found where Ray looks for it; Ray itself sends none unless told to.

    https://docs.ray.io/en/latest/ray-security/token-auth.html
    """
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    place = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token and place.is_file():
        token = place.read_text(encoding="utf-8")
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def _version_of(address: str, headers: Mapping[str, str]) -> str:
    """Return the server's Ray version; asked for here since Ray's own client would wait for minutes."""
    wait = (_CONNECT_SECONDS, _ANSWER_SECONDS)
    with _server_errors(address):
        answer = requests.get(f"{address}/api/version", headers=dict(headers), timeout=wait)
        if answer.status_code in (401, 403):
            held = "does not accept the token found here" if headers else "asks for a token, and none was found here"
            raise ClusterError(
                f"The Ray cluster at '{address}' {held}: set RAY_AUTH_TOKEN_PATH to the file that holds the cluster's"
            )
        try:
            return str(answer.json()["ray_version"])
        except (ValueError, KeyError, TypeError):
            raise ClusterError(
                f"What answers at '{address}' is no Ray job server: give --address the head's dashboard, port 8265"
            ) from None


@contextmanager
def _server_errors(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into one sentence without request, header or traceback."""
    try:
        yield
    except (ConnectionError, requests.exceptions.RequestException) as error:
        raise _lost(address, error) from error
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ClusterError(f"The Ray cluster at '{address}' refused: {lines[-1] if lines else error}") from error


def _lost(address: str, error: BaseException) -> ClusterError:
    if isinstance(error, ClusterError):
        return error
    cause: BaseException | None = error
    reason = "it did not answer"
    while cause is not None:
        cause = getattr(cause, "reason", None) or cause.__cause__ or cause.__context__
        if isinstance(cause, OSError) and cause.strerror:
            reason = cause.strerror
    return ClusterError(
        f"Nothing answers as a Ray job server at '{address}' ({reason}): start the cluster with ray[default], or "
        "correct --address"
    )


@contextmanager
def _address_variables_set_aside() -> Iterator[None]:
    """Keep Ray's client from preferring $RAY_ADDRESS to the address that it is given."""
    kept = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _job_of(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        status=str(details.status),
        command=details.entrypoint,
        message=(details.message or "").strip(),
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
    )
