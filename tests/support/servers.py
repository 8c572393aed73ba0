"""Servers on loopback that caches lie behind: S3 (moto's), the Hugging Face Hub, and plain HTTP."""

import functools
import http.server
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["S3", "Asked", "Hub", "http_server", "hub_server", "s3_server"]

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


@dataclass(frozen=True)
class Asked:
    """One request: the path, and the headers Range and Authorization, "" where there is none."""

    path: str
    range: str
    authorization: str


class Hub:
    """A server that answers what reading a dataset asks of the Hugging Face Hub, and one that keeps its large files.

    options   of fsspec for hf://: the server's address and the token that it expects
    url       of the dataset
    asked     requests of the Hub, in order
    fetched   requests of the other server, to which the Hub sends whoever wants a tar file
    """

    REPOSITORY = "someone/shapes"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options = {"endpoint": "", "token": "hf_of_this_test"}
        self.url = f"hf://datasets/{self.REPOSITORY}"
        self.asked: list[Asked] = []
        self.fetched: list[Asked] = []
        self.large = ""

    def answer(self, handler: http.server.SimpleHTTPRequestHandler) -> bool:
        self.asked.append(found := _asked(handler))
        api, files = f"/api/datasets/{self.REPOSITORY}", f"/datasets/{self.REPOSITORY}/resolve/main/"
        if found.authorization != f"Bearer {self.options['token']}" or not found.path.startswith((api, files)):
            _send(handler, 401, b"", {"X-Error-Code": "RepoNotFound"})
        elif found.path.startswith(f"{api}/tree/main"):
            self._tree(handler, found.path.removeprefix(f"{api}/tree/main").strip("/"))
        elif found.path.startswith(api):
            _send(handler, 200, json.dumps({"id": self.REPOSITORY, "sha": "0" * 40}).encode())
        elif found.path.endswith(".tar"):
            _send(handler, 302, b"", {"Location": f"{self.large}/{found.path.removeprefix(files)}"})
        else:
            _send_file(handler, self.folder / found.path.removeprefix(files), found.range)
        return True

    def answer_of_the_other(self, handler: http.server.SimpleHTTPRequestHandler) -> bool:
        self.fetched.append(found := _asked(handler))
        _send_file(handler, self.folder / found.path.strip("/"), found.range)
        return True

    def _tree(self, handler: http.server.SimpleHTTPRequestHandler, below: str) -> None:
        if not (self.folder / below).is_dir():
            _send(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        recursive = "recursive=true" in handler.path.lower()
        found = sorted((self.folder / below).rglob("*") if recursive else (self.folder / below).iterdir())
        entries = [
            {
                "type": "directory" if path.is_dir() else "file",
                "path": path.relative_to(self.folder).as_posix(),
                "oid": "0" * 40,
                "size": 0 if path.is_dir() else path.stat().st_size,
            }
            for path in found
        ]
        _send(handler, 200, json.dumps(entries).encode())


@contextmanager
def hub_server(folder: Path) -> Iterator[Hub]:
    """The Hub with one private dataset, whose files are those of a folder."""
    hub = Hub(folder)
    with http_server(folder, hub.answer) as address, http_server(folder, hub.answer_of_the_other) as other:
        hub.options["endpoint"], hub.large = address, other
        yield hub


def _asked(handler: http.server.SimpleHTTPRequestHandler) -> Asked:
    path = unquote(urlsplit(handler.path).path)
    return Asked(path, handler.headers.get("Range", ""), handler.headers.get("Authorization", ""))


def _send(
    handler: http.server.SimpleHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None
) -> None:
    handler.send_response(status)
    sent = {"Content-Type": "application/json", "Content-Length": str(len(body))} | (headers or {})
    for name, value in sent.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def _send_file(handler: http.server.SimpleHTTPRequestHandler, path: Path, range: str) -> None:
    if not path.is_file():
        _send(handler, 404, b"", {"X-Error-Code": "EntryNotFound"})
        return
    data, asked = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", range)
    _send(handler, 206 if asked else 200, data[int(asked[1]) : int(asked[2]) + 1] if asked else data)
