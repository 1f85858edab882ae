"""Serve one page to this machine while its run goes on. The page loads again when its version changes."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ofmu.errors import ConfigError, OfmuError
from ofmu.reports.page import render

_HOST = "127.0.0.1"
"""Other machines cannot connect."""


class PageServer:
    """An HTTP server of one page, bound to this machine's loopback address.

    Args:
        make_page: returns the page as HTML. An OfmuError, such as of a search without a trial, becomes a page that says
            so and is loaded again.
        version: returns a text that changes when the page would.
        port: 0 stands for any free port.

    Raises:
        ConfigError: the port is taken, or this user may not open it.
    """

    def __init__(self, make_page: Callable[[], str], version: Callable[[], str], port: int = 0) -> None:
        self._make_page, self._version = make_page, version
        self._mutex, self._cached = threading.Lock(), ("", "")
        try:
            self._server = ThreadingHTTPServer((_HOST, port), self._handler())
        except (OSError, OverflowError) as error:
            taken = getattr(error, "errno", None) == errno.EADDRINUSE
            reason = "is taken" if taken else "cannot be opened"
            raise ConfigError(f"The port {port} {reason}: name another --port, or leave it out") from error

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{_HOST}:{self._server.server_address[1]}/"

    def serve(self) -> None:
        """Serve until :meth:`close`, or until an exception such as Ctrl-C."""
        try:
            self._server.serve_forever(poll_interval=0.2)
        finally:
            self._server.server_close()

    def close(self) -> None:
        """End :meth:`serve`, which runs in another thread."""
        self._server.shutdown()

    def page(self) -> str:
        """Return the page of the present version. It is made once per version."""
        with self._mutex:
            version = self._version()
            if self._cached[0] != version or not self._cached[1]:
                self._cached = version, self._make_or_explain()
            return self._cached[1]

    def _make_or_explain(self) -> str:
        try:
            return self._make_page()
        except OfmuError as error:
            return render(
                "waiting.html.j2",
                Path(__file__).parent / "templates",
                live=True,
                title="Waiting · ofmu",
                kind="Report",
                heading="Nothing to show yet",
                sub="",
                reason=str(error),
            )

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                # A page of another site that names this machine under its own host must not read the report.
                host = self.headers.get("Host", "").rpartition(":")[0]
                if host not in (_HOST, "localhost"):
                    self.send_error(403)
                elif self.path == "/version":
                    self._answer("text/plain", server._version())
                elif self.path == "/":
                    self._answer("text/html", server.page())
                else:
                    self.send_error(404)

            def _answer(self, kind: str, text: str) -> None:
                body = text.encode()
                self.send_response(200)
                self.send_header("Content-Type", f"{kind}; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Print nothing: the page asks every few seconds."""

        return Handler
