from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest

from ofmu.errors import ConfigError, RunError
from ofmu.reports.server import PageServer
from report_runs import serving


def get(url: str, host: str | None = None) -> str:
    request = urllib.request.Request(url, headers={} if host is None else {"Host": host})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def test_a_page_is_made_once_per_version():
    made, versions = [], ["1"]

    def make() -> str:
        made.append(versions[-1])
        return f"page {versions[-1]}"

    with serving(PageServer(make, lambda: versions[-1])) as url:
        assert [get(url), get(url)] == ["page 1", "page 1"]
        versions.append("2")
        assert get(url + "version") == "2"
        assert get(url) == "page 2"
    assert made == ["1", "2"]


def test_only_this_machine_is_answered():
    server = PageServer(lambda: "page", lambda: "1")
    assert server.url.startswith("http://127.0.0.1:")
    with serving(server) as url:
        port = url.rstrip("/").rpartition(":")[2]
        assert get(url, f"localhost:{port}") == "page"
        for host in ("evil.example", f"evil.example:{port}", ""):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                get(url, host)
        for path in ("x", "../etc/passwd", "version/"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(url + path)


def test_a_run_without_a_result_is_explained():
    def make() -> str:
        raise RunError("No trial of <b>it</b> is complete yet")

    with serving(PageServer(make, lambda: "1")) as url:
        page = get(url)
    assert "No trial of &lt;b&gt;it&lt;/b&gt; is complete yet" in page
    assert 'id="live"' in page


def test_a_port_that_is_taken_is_refused():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"The port {port} is taken"):
            PageServer(lambda: "", lambda: "", port)
