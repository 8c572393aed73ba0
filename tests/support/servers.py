"""Servers on loopback that caches lie behind: S3 (moto's) and plain HTTP."""

import functools
import http.server
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["S3", "http_server", "s3_server"]

BUCKET = "shapes"


class S3:
    """A running S3 server.

    environment  variables that make every S3 client of a process use it: how users name an endpoint and credentials.
    """

    def __init__(self, address: str) -> None:
        import boto3

        self.environment = {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._client = boto3.client(
            "s3", endpoint_url=address, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
        )
        self._client.create_bucket(Bucket=BUCKET)
        self._folders = 0

    def folder(self) -> str:
        """The URL of a new, empty folder."""
        self._folders += 1
        return f"s3://{BUCKET}/{self._folders:04d}"

    def objects(self, url: str) -> dict[str, str]:
        """Time of the last change of every object below a URL, by path relative to it."""
        prefix = url.removeprefix(f"s3://{BUCKET}/") + "/"
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        found = [entry for page in pages for entry in page.get("Contents", [])]
        return {entry["Key"].removeprefix(prefix): entry["LastModified"].isoformat() for entry in found}

    def get(self, url: str) -> bytes:
        return bytes(self._client.get_object(Bucket=BUCKET, Key=url.removeprefix(f"s3://{BUCKET}/"))["Body"].read())

    def put(self, url: str, data: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=url.removeprefix(f"s3://{BUCKET}/"), Body=data)

    def delete(self, url: str) -> None:
        self._client.delete_object(Bucket=BUCKET, Key=url.removeprefix(f"s3://{BUCKET}/"))

    def tree(self, url: str) -> dict[str, bytes]:
        """Every object of a cache by path, but for its logs."""
        return {path: self.get(f"{url}/{path}") for path in self.objects(url) if not path.startswith("logs/")}


@contextmanager
def s3_server() -> Iterator[S3]:
    """An S3 server on a free port of loopback, with one bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3(f"http://{host}:{port}")
    finally:
        server.stop()


Answer = Callable[[http.server.SimpleHTTPRequestHandler], bool]


@contextmanager
def http_server(folder: Path, answer: Answer | None = None) -> Iterator[str]:
    """A plain web server of a folder's files on a free port of loopback; -> its URL.

    answer  asked at every GET; True where it has answered itself.
    """

    class Quiet(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: tests read what programs say, not this."""

        def do_GET(self) -> None:
            if answer is None or not answer(self):
                super().do_GET()

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True  # one that is still answering does not hold the test
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up on purpose
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
