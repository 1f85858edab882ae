"""Paths and URIs: joining, and what may be shown or stored of them."""

from __future__ import annotations

import pytest

from cluster.storage.uri import (
    has_credentials,
    is_uri,
    join_uri,
    redacted,
    short_reason,
    storage_at,
    without_credentials,
)

SECRET = "s3://key:hush@bucket/runs?endpoint_override=127.0.0.1:1&scheme=http&secret_key=hush"


def test_a_stored_uri_still_works_and_holds_no_credentials():
    assert without_credentials(SECRET) == "s3://bucket/runs?endpoint_override=127.0.0.1:1&scheme=http"
    assert without_credentials("runs/a?b") == "runs/a?b"


def test_a_shown_uri_holds_neither_credentials_nor_options():
    assert redacted(SECRET) == "s3://bucket/runs"
    assert redacted("runs/a?b") == "runs/a?b"


@pytest.mark.parametrize(
    ("location", "found"),
    [
        (SECRET, True),
        ("s3://key@bucket/run", True),
        ("s3://bucket/run?access_key=a", True),
        ("s3://bucket/run?session_token=", True),
        ("s3://bucket/run?endpoint_override=127.0.0.1:1&region=us-east-1", False),
        ("gs://bucket/run", False),
        ("/shared/key@host/run?secret_key=a", False),
    ],
)
def test_credentials_of_a_uri_are_found(location, found):
    assert has_credentials(location) == found


def test_a_joined_uri_keeps_credentials_and_options():
    assert join_uri("s3://b/r?x=1", "trials/3") == "s3://b/r/trials/3?x=1"
    assert join_uri(SECRET, "x") == SECRET.replace("/runs?", "/runs/x?")
    assert join_uri("runs/a?b/", "x") == "runs/a?b/x"


def test_an_unknown_scheme_is_named_without_credentials(tmp_path):
    assert is_uri("nosuch://bucket")
    assert not is_uri(tmp_path)
    with pytest.raises(ValueError, match="nosuch://bucket/runs") as refused:
        storage_at("nosuch://key:hush@bucket/runs")
    assert "hush" not in str(refused.value)


def test_a_reason_is_one_line():
    assert short_reason(OSError(28, "No space left on device", "/x")) == "No space left on device"
    assert short_reason(RuntimeError("first\nsecond")) == "first"
    assert short_reason(RuntimeError()) == "RuntimeError"
    assert len(short_reason(RuntimeError("x" * 500))) == 161
