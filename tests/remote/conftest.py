"""One S3 server for all tests of this folder; each takes a folder of its own in the bucket."""

from collections.abc import Iterator

import pytest

from tests.support.servers import S3, s3_server


@pytest.fixture(scope="session")
def running_s3() -> Iterator[S3]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(running_s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, with the environment of this process and its children set for it."""
    for name, value in running_s3.environment.items():
        monkeypatch.setenv(name, value)
    return running_s3
