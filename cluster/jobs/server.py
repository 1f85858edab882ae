"""Submits, lists, follows and stops jobs through the job server of a Ray cluster."""

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
_SILENCE_SECONDS = 60.0
"""How long a follower waits for a server that does not answer, such as during a restart of the head."""
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True)
class Job:
    """One job, as the job server describes it."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    command: str
    message: str = ""
    started: float | None = None
    """Unix time in seconds."""
    ended: float | None = None
    """Unix time in seconds."""
    exit_code: int | None = None
    """Exit code of the job's command, or minus the number of the signal that ended the command."""

    @property
    def is_over(self) -> bool:
        """Whether the status can no longer change."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def exit_status(self) -> int:
        """The exit status that a shell would report for the job's command: 128 + n if signal n ended the command."""
        if self.status == "SUCCEEDED":
            return 0
        code = self.exit_code or 1
        return 128 - code if code < 0 else code


class JobServer:
    """A cluster's job server. The constructor checks that the server answers."""

    def __init__(self, address: str | None = None) -> None:
        """Connect to the server.

        Args:
            address: ``http://HOST:8265``. None: $RAY_API_SERVER_ADDRESS, else $RAY_ADDRESS, else this machine.

        Raises:
            ClusterError: nothing answers at the address, another program answers, or the token is missing or wrong.
        """
        # Ray's messages about packages and versions would appear between the lines of a job.
        for name in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
        self.address = _server_url(address)
        headers = _token_header()
        self.ray_version = _version_of(self.address, headers)
        with _server_errors(self.address), _without_address_variables():
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
        """Upload the package, run ``python -m ofmu`` with ``command`` in it, and return the job's ID.

        Args:
            command: the arguments of ``ofmu``.
            package: the files to upload.
            environment: variables of the job and its workers. The server stores them with the job's record.
            cpus: CPUs for the command itself. In a search, the command is the driver and prepares the target and the
                reference.
            gpus: GPUs for the command itself. Without CPUs and GPUs the command runs on the head node.

        Raises:
            ClusterError: the server refuses the job.
        """
        with _server_errors(self.address), _without_address_variables():
            job_id: str = self._client.submit_job(
                entrypoint=shlex.join(["python", "-m", "ofmu", *command]),
                runtime_env={
                    "working_dir": str(package.root),
                    "excludes": list(package.excludes),
                    # Python then writes each line at once, so that a follower sees it.
                    "env_vars": {"PYTHONUNBUFFERED": "1", **(environment or {})},
                },
                entrypoint_num_cpus=cpus or None,
                entrypoint_num_gpus=gpus or None,
            )
        return job_id

    def jobs(self) -> list[Job]:
        """Return the submitted jobs, oldest first.

        Raises:
            ClusterError: the server does not answer any more.
        """
        with _server_errors(self.address):
            found = [_job_of(each) for each in self._client.list_jobs() if each.submission_id]
        return sorted(found, key=lambda job: job.started or float("inf"))

    def job(self, job_id: str) -> Job:
        """Return one job.

        Raises:
            RunError: the server has no such job.
            ClusterError: the server does not answer any more.
        """
        known = {job.id: job for job in self.jobs()}
        if job_id not in known:
            hint = nearest_name(job_id, known) if known else "the cluster has no jobs"
            raise RunError(f"There is no job '{job_id}' on {self.address}: {hint}")
        return known[job_id]

    def logs(self, job_id: str) -> str:
        """Return what the job has printed.

        Raises:
            RunError: the server has no such job.
            ClusterError: the server does not answer any more.
        """
        self.job(job_id)
        with _server_errors(self.address):
            text: str = self._client.get_job_logs(job_id)
        return text

    def follow(self, job_id: str, write: Callable[[str], None]) -> Job:
        """Pass everything that the job prints to ``write``, from its first line until the job ends. Return the job.

        A KeyboardInterrupt ends this call and not the job.

        Raises:
            RunError: the server has no such job.
            ClusterError: the server has not answered for a minute.
        """
        self.job(job_id)
        written = 0

        def count_and_write(text: str) -> None:
            nonlocal written
            written += len(text)
            write(text)

        silent_since: float | None = None
        while True:
            try:
                asyncio.run(self._tail(job_id, written, count_and_write))
                job = self.job(job_id)
                if job.is_over:
                    # The stream may end before it has delivered the last lines.
                    count_and_write(self.logs(job_id)[written:])
                    return job
                silent_since = None
            except (ClusterError, RuntimeError, OSError, aiohttp.ClientError) as error:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > _SILENCE_SECONDS:
                    raise _lost(self.address, error) from error
            time.sleep(_POLL_SECONDS)

    def stop(self, job_id: str) -> Job:
        """Stop a job, wait until it is over, and return it. A job that is over already does not change.

        Raises:
            RunError: the server has no such job.
            ClusterError: the server does not answer any more.
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

    async def _tail(self, job_id: str, written: int, write: Callable[[str], None]) -> None:
        """Stream the log until the job is over. Skip the first ``written`` characters."""
        stream = asyncio.create_task(self._stream(job_id, written, write))
        while not (await asyncio.wait({stream}, timeout=_POLL_SECONDS))[0]:
            if (await asyncio.to_thread(self.job, job_id)).is_over:
                # The server closes the stream only some seconds after the end of the job.
                stream.cancel()
        if not stream.cancelled():
            stream.result()

    async def _stream(self, job_id: str, written: int, write: Callable[[str], None]) -> None:
        async for text in self._client.tail_job_logs(job_id):
            new = text[written:]
            written = max(0, written - len(text))
            if new:
                write(new)


def chosen_environment(choices: Sequence[str]) -> dict[str, str]:
    """Return the variables that the entries name. ``NAME`` takes the value that is set here; ``NAME=VALUE`` gives one.

    Raises:
        ConfigError: an entry has neither form. The message does not contain the entry, which may be a misplaced secret.
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
    """Return the header with the cluster's token, from the places where Ray looks for a token.

    Ray's own client sends a token only if $RAY_AUTH_MODE asks for one.
    https://docs.ray.io/en/latest/ray-security/token-auth.html
    """
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token and file.is_file():
        token = file.read_text(encoding="utf-8")
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def _version_of(address: str, headers: Mapping[str, str]) -> str:
    """Return the server's Ray version. Ray's own client would wait for minutes for a server that does not answer."""
    wait = (_CONNECT_SECONDS, _ANSWER_SECONDS)
    with _server_errors(address):
        answer = requests.get(f"{address}/api/version", headers=dict(headers), timeout=wait)
        if answer.status_code in (401, 403):
            problem = "does not accept the token found here" if headers else "asks for a token, and none was found here"
            raise ClusterError(
                f"The Ray cluster at '{address}' {problem}: "
                "set RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token"
            )
        try:
            return str(answer.json()["ray_version"])
        except (ValueError, KeyError, TypeError):
            raise ClusterError(
                f"The server at '{address}' is not a Ray job server: give --address the head's dashboard, port 8265"
            ) from None


@contextmanager
def _server_errors(address: str) -> Iterator[None]:
    """Turn the errors of Ray's client into one sentence without request, header or traceback."""
    try:
        yield
    except (ConnectionError, requests.exceptions.RequestException) as error:
        raise _lost(address, error) from error
    except RuntimeError as error:
        if "No available agent" in str(error):
            raise ClusterError(
                f"The Ray cluster at '{address}' has no agent that starts jobs: if another Ray on its head has the "
                "agent's port, start the head with another --dashboard-agent-listen-port; else wait for the head"
            ) from error
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
def _without_address_variables() -> Iterator[None]:
    """Unset the address variables. Ray's client would prefer $RAY_ADDRESS to the address that it is given."""
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
