"""A small hub on this machine: the requests that an upload of a model makes, answered from memory."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Hub:
    """The repositories, and what was asked of the server."""

    token: str = "hf_right"
    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """By repository: the content of each file by its name."""
    private: dict[str, bool] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, object]:
        """Return the status and the JSON of the answer to a request."""
        self.requests.append(f"{method} {path}")
        if token != f"Bearer {self.token}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if name.startswith("theirs/"):
                return 403, {"error": "You don't have the rights to create a model under the namespace"}
            if name in self.files:
                return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            self.files[name], self.private[name] = {".gitattributes": b""}, wanted.get("visibility") == "private"
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if len(parts) < 5 or "/".join(parts[2:4]) not in self.files:
            return 404, {"error": f"nothing at {path}"}
        name, verb = "/".join(parts[2:4]), parts[4]
        if verb == "tree":
            files = self.files[name].items()
            return 200, [{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in files]
        if verb == "preupload":
            files = json.loads(body)["files"]
            return 200, {
                "files": [
                    {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for each in files
                ]
            }
        if verb == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"success": True, "commitOid": "a" * 40, "commitUrl": f"{self.url}/{name}/commit/{'a' * 40}"}
        return 404, {"error": f"nothing at {path}"}


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run the hub on a free port of this machine until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("Authorization", "")
            status, content = hub.answer(self.command, urlsplit(self.path).path, token, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = _answer  # noqa: N815 - the base class calls these names
        do_POST = _answer  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
