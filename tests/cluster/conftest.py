from __future__ import annotations

from collections.abc import Iterator

import pytest

from s3_server import s3_server


@pytest.fixture(scope="module")
def s3_options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The options of URIs that lead to a running S3 server with the empty bucket ``bucket``."""
    with s3_server(tmp_path_factory.mktemp("s3")) as options:
        yield options


@pytest.fixture
def s3_uri(s3_options: str, request: pytest.FixtureRequest) -> str:
    """A URI of this test's own in the bucket of an S3 server."""
    return f"s3://bucket/{request.node.name}/run?{s3_options}"
