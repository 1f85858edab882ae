"""A driver's watch over its cluster's head: a lost head ends the driver with a sentence, not with Ray's abort."""

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

_PAUSE = 2.0
_RAYS_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
_RAYS_OWN_PATIENCE = 60.0
_SHARE = 0.5
_GRACE = 10.0


class LostHeadError(ClusterError):
    """The head of the cluster that this process had joined is gone."""


class Lifeline:
    """Watches the joined cluster's head while its block runs, where that is the main thread's.

    Ray gives a head that is gone a minute (``$RAY_gcs_rpc_server_reconnect_timeout_s``) to come back, as one with
    GCS fault tolerance does, and then aborts the process. This gives it half of that. Once the head is lost, Ray is
    of no use to this process any more and must not be shut down: it would wait for the head, and abort.

    A head whose port this process does not reach from the start, as through Ray Client, is not watched. ``then`` says
    how to go on, after a verb in the imperative. A block that hangs in Ray, out of an exception's reach,
    is ended with the process.

    Raises:
        LostHeadError: in place of whatever the block does without a head.
    """

    def __init__(self, then: Callable[[], str] = str) -> None:
        self._address = "" if ray_client.is_connected() else str(ray.get_runtime_context().gcs_address)
        self._patience = _SHARE * float(os.environ.get(_RAYS_PATIENCE, _RAYS_OWN_PATIENCE))
        self._answered = time.monotonic()
        self._then = then
        self._ended = threading.Event()
        self._interrupts = True
        self.is_lost = False
        """Whether the head has been gone for too long."""

    def __enter__(self) -> Lifeline:
        if threading.current_thread() is threading.main_thread() and self._answers():
            threading.Thread(target=self._watch, name="watch over the head", daemon=True).start()
        else:
            self._ended.set()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, Exception):
            # It may be what Ray raises once its head is gone: wait for what becomes of one that does not answer now.
            self._interrupts = False
            while not (self._ended.is_set() or self.is_lost or self._answers()):
                time.sleep(_PAUSE)
        self._ended.set()
        if self.is_lost:
            atexit.unregister(ray.shutdown)
            raise LostHeadError(self._sentence()) from error

    def _sentence(self) -> str:
        lost = f"The head of the Ray cluster at '{self._address}' does not answer any more: start the cluster again"
        return "; then ".join(filter(None, (lost, self._then())))

    def _watch(self) -> None:
        """Knock at the head's port, and interrupt the main thread once it has been closed for too long."""
        while not self._ended.wait(_PAUSE):
            if self._answers():
                self._answered = time.monotonic()
            elif time.monotonic() - self._answered > self._patience:
                self.is_lost = True
                if self._interrupts:
                    self._interrupt()
                return

    def _interrupt(self) -> None:
        _thread.interrupt_main()
        if not self._ended.wait(_GRACE):
            # a progress display may have hidden the cursor
            shown = "\033[?25h" if sys.stderr.isatty() else ""
            print(f"{shown}Error: {self._sentence()}", file=sys.stderr, flush=True)
            os._exit(1)

    def _answers(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PAUSE).close()
        except (OSError, ValueError):
            return False
        return True
