"""Watches the head of the joined Ray cluster, so that a lost head ends the process with a sentence.

Without this watch, Ray aborts the process.
"""

from __future__ import annotations

import _thread
import atexit
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

import ray
from ray.util.client import ray as ray_client

from ofmu.errors import ClusterError

_POLL_SECONDS = 2.0
_RAY_TIMEOUT_VARIABLE = "RAY_gcs_rpc_server_reconnect_timeout_s"
_RAY_DEFAULT_TIMEOUT = 60.0
_SHARE_OF_RAY_TIMEOUT = 0.5
_EXIT_SECONDS = 10.0
_SHOW_CURSOR = "\033[?25h"


class LostHeadError(ClusterError):
    """The head of the cluster that this process had joined is gone."""


class HeadMonitor:
    """A context manager that watches the head while its block runs. The block must run in the main thread.

    If the head is gone, Ray waits for its return for one minute (``$RAY_gcs_rpc_server_reconnect_timeout_s``) and then
    aborts the process. With GCS fault tolerance a head does return. The monitor waits for half of that time. After
    that, this process cannot use Ray any more and must not call ``ray.shutdown``, which would wait for the head and
    abort.

    A head whose port this process cannot reach from the start, such as through Ray Client, is not watched. If the block
    hangs inside Ray, where no exception can reach it, the process exits.

    Args:
        resume_hint: returns text that tells the user how to resume, such as "continue with ...". It is appended to the
            error.

    Raises:
        LostHeadError: the head is lost. It replaces every other exception of the block.
    """

    def __init__(self, resume_hint: Callable[[], str] = str) -> None:
        self._address = "" if ray_client.is_connected() else str(ray.get_runtime_context().gcs_address)
        ray_timeout = float(os.environ.get(_RAY_TIMEOUT_VARIABLE, _RAY_DEFAULT_TIMEOUT))
        self._timeout = _SHARE_OF_RAY_TIMEOUT * ray_timeout
        self._last_answer = time.monotonic()
        self._resume_hint = resume_hint
        self._block_ended = threading.Event()
        self._may_interrupt = True
        self.is_lost = False
        """Whether the head has been gone for longer than the timeout."""

    def __enter__(self) -> HeadMonitor:
        if threading.current_thread() is threading.main_thread() and self._head_answers():
            threading.Thread(target=self._watch, name="head monitor", daemon=True).start()
        else:
            self._block_ended.set()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            # Ray may have raised this error because the head is gone. Wait until the head answers or counts as lost.
            self._may_interrupt = False
            while not (self._block_ended.is_set() or self.is_lost or self._head_answers()):
                time.sleep(_POLL_SECONDS)
        self._block_ended.set()
        if self.is_lost:
            atexit.unregister(ray.shutdown)
            raise LostHeadError(self._message()) from error

    def _message(self) -> str:
        lost = f"The head of the Ray cluster at '{self._address}' does not answer any more: start the cluster again"
        return "; then ".join(filter(None, (lost, self._resume_hint())))

    def _watch(self) -> None:
        """Try the head's port again and again. Interrupt the main thread if no attempt succeeds within the timeout."""
        while not self._block_ended.wait(_POLL_SECONDS):
            if self._head_answers():
                self._last_answer = time.monotonic()
            elif time.monotonic() - self._last_answer > self._timeout:
                self.is_lost = True
                if self._may_interrupt:
                    self._interrupt()
                return

    def _interrupt(self) -> None:
        _thread.interrupt_main()
        if not self._block_ended.wait(_EXIT_SECONDS):
            # A progress display may have hidden the cursor.
            prefix = _SHOW_CURSOR if sys.stderr.isatty() else ""
            print(f"{prefix}Error: {self._message()}", file=sys.stderr, flush=True)
            os._exit(1)

    def _head_answers(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_POLL_SECONDS).close()
        except (OSError, ValueError):
            return False
        return True
