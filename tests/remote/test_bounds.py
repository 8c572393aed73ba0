"""Whatever a server answers, reading takes bounded bytes, seconds and tries; what passes is tried again."""

import gzip
import http.server
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from s3fs import S3FileSystem

import teacher_cache
from teacher_cache.config import CacheConfig
from teacher_cache.errors import ManifestError, ShardDamaged, StorageError
from teacher_cache.format import paths
from teacher_cache.storage import remote, remote_read
from teacher_cache.storage.remote_read import HttpStatus, persist
from teacher_cache.testing import build, make_record
from tests.support.limits import HANG
from tests.support.servers import Answer, http_server

COUNT = 10
Request = http.server.SimpleHTTPRequestHandler


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_read, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(remote_read, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(remote, "MAX_DOCUMENT", 1 << 20)


@contextmanager
def cache_behind(folder: Path, answer: Answer, format: str = "webdataset") -> Iterator[str]:
    build(folder / "c", CacheConfig(format=format, shapes_per_shard=4), count=COUNT)  # type: ignore[arg-type]
    with http_server(folder, answer) as url:
        yield f"{url}/c"


def head(request: Request, status: int, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()


def endless(request: Request, block: bytes = bytes(1 << 16)) -> int:
    """Send without end until the other side hangs up; -> bytes sent."""
    head(request, 200, Connection="close")
    request.close_connection = True
    sent = 0
    try:
        while True:
            request.wfile.write(block)
            sent += len(block)
    except OSError:
        return sent


def content(request: Request) -> bytes:
    return Path(request.translate_path(request.path)).read_bytes()


def test_an_endless_document_is_refused_at_its_bound(tmp_path: Path) -> None:
    sent: list[int] = []

    def answer(request: Request) -> bool:
        if request.path.endswith(paths.MANIFEST):
            sent.append(endless(request))
            return True
        return False

    with cache_behind(tmp_path, answer) as url:
        with pytest.raises(ManifestError, match=r"manifest\.json: the store sends more than 1048576 bytes"):
            teacher_cache.open(url)
        (problem,) = teacher_cache.verify(url)
        assert problem.file == paths.MANIFEST
        until = time.monotonic() + HANG
        while len(sent) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    # What the kernel holds in flight on loopback is a few MB, whatever is read.
    assert max(sent) < 64 << 20


def test_a_small_answer_that_unpacks_to_a_large_one_is_refused_at_the_bound(tmp_path: Path) -> None:
    asked: list[str] = []
    body = gzip.compress(bytes(64 << 20))

    def answer(request: Request) -> bool:
        asked.append(request.headers["Accept-Encoding"])
        if not request.path.endswith(paths.MANIFEST):
            return False
        head(request, 200, Content_Encoding="gzip", Content_Length=str(len(body)))
        request.wfile.write(body)
        return True

    with cache_behind(tmp_path, answer) as url, pytest.raises(ManifestError, match="sends more than 1048576 bytes"):
        teacher_cache.open(url)
    assert asked == ["identity"]


@pytest.mark.parametrize("format", ["zarr", "webdataset"])
def test_an_endless_shard_is_damage_and_takes_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    wanted = paths.shard_paths(CacheConfig(format=format), 1)[0]  # type: ignore[arg-type]
    most: list[int] = []
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        done = real(descriptor, data)
        most.append(os.fstat(descriptor).st_size)
        return done

    def answer(request: Request) -> bool:
        if request.path.endswith(wanted):
            endless(request)
            return True
        return False

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with cache_behind(tmp_path, answer, format) as url:
        cache = teacher_cache.open(url)
        total = cache._manifest.shards[1].bytes
        with pytest.raises(ShardDamaged, match=r"expected at most \d+ bytes, as in the manifest") as caught:
            cache.read([5])
        assert caught.value.file == wanted
        assert cache[0].id == make_record(0).id
        assert [problem.file for problem in teacher_cache.verify(url)] == [wanted]
    assert max(most) <= total
    assert not list(tmp_path.glob("teacher-cache-*"))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_passes_is_tried_again(tmp_path: Path, status: int) -> None:
    asked: Counter[str] = Counter()

    def answer(request: Request) -> bool:
        asked[request.path] += 1
        if asked[request.path] < 3:
            head(request, status, Content_Length="0", Retry_After="0")
            return True
        return False

    with cache_behind(tmp_path, answer) as url:
        assert [record.id for record in teacher_cache.open(url)] == [make_record(i).id for i in range(COUNT)]
    assert set(asked.values()) == {3}


@pytest.mark.parametrize(
    ("status", "times"), [(500, remote_read.TRIES), (503, remote_read.TRIES), (401, 1), (403, 1), (410, 1), (501, 1)]
)
def test_only_a_404_is_a_missing_file(tmp_path: Path, status: int, times: int) -> None:
    asked: Counter[str] = Counter()
    wanted = paths.shard_paths(CacheConfig(format="webdataset"), 0)[0]

    def answer(request: Request) -> bool:
        asked[request.path] += 1
        if request.path.endswith((paths.MANIFEST, wanted)) and answering:
            head(request, status, Content_Length="0")
            return True
        return False

    answering = False
    with cache_behind(tmp_path, answer) as url:
        cache = teacher_cache.open(url)
        answering, before = True, asked.copy()
        with pytest.raises(StorageError, match=rf"HTTP {status}"):
            teacher_cache.open(url)
        with pytest.raises(StorageError, match=rf"HTTP {status}"):
            cache.read([0])
        with pytest.raises(StorageError, match=rf"HTTP {status}"):
            teacher_cache.verify(url)
        assert asked[f"/c/{wanted}"] - before[f"/c/{wanted}"] == times


def test_a_connection_that_breaks_in_the_middle_begins_again(tmp_path: Path) -> None:
    broken: set[str] = set()

    def answer(request: Request) -> bool:
        if request.path in broken:
            return False
        broken.add(request.path)
        data = content(request)
        head(request, 200, Content_Length=str(len(data)))
        request.wfile.write(data[: len(data) // 2])
        request.close_connection = True
        return True

    with cache_behind(tmp_path, answer) as url:
        assert [record.id for record in teacher_cache.open(url)] == [make_record(i).id for i in range(COUNT)]
        broken.clear()
        assert teacher_cache.verify(url) == []


def test_a_server_that_stalls_is_given_up_and_tried_again(tmp_path: Path) -> None:
    stalled: set[str] = set()
    over = threading.Event()

    def answer(request: Request) -> bool:
        if request.path in stalled:
            return False
        stalled.add(request.path)
        data = content(request)
        head(request, 200, Content_Length=str(len(data)))
        request.wfile.write(data[:1])
        request.wfile.flush()
        over.wait(HANG)
        return True

    with cache_behind(tmp_path, answer) as url:
        try:
            assert len(teacher_cache.open(url)) == COUNT
        finally:
            over.set()


def test_a_server_without_lengths_or_ranges_is_read_and_verified(tmp_path: Path) -> None:
    def answer(request: Request) -> bool:
        assert "Range" not in request.headers
        if not Path(request.translate_path(request.path)).is_file():
            return False
        head(request, 200, Transfer_Encoding="chunked")
        for piece in (content(request), b""):
            request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        return True

    with cache_behind(tmp_path, answer) as url:
        assert [record.id for record in teacher_cache.open(url)] == [make_record(i).id for i in range(COUNT)]
        assert teacher_cache.verify(url) == []


def test_redirects_are_followed_and_a_circle_of_them_is_refused(tmp_path: Path) -> None:
    def answer(request: Request) -> bool:
        if request.path.startswith("/circle"):
            head(request, 302, Location=request.path, Content_Length="0")
            return True
        if request.path.startswith("/moved/"):
            head(request, 307, Location=request.path.replace("/moved/", "/c/"), Content_Length="0")
            return True
        return False

    with cache_behind(tmp_path, answer) as url:
        moved = url.replace("/c", "/moved")
        assert [record.id for record in teacher_cache.open(moved)] == [make_record(i).id for i in range(COUNT)]
        assert teacher_cache.verify(moved) == []
        with pytest.raises(StorageError, match="TooManyRedirects"):
            teacher_cache.open(url.replace("/c", "/circle"))


def test_a_page_that_says_sorry_is_no_manifest(tmp_path: Path) -> None:
    def answer(request: Request) -> bool:
        page = b"<!doctype html><title>Sign in</title>"
        head(request, 200, Content_Type="text/html", Content_Length=str(len(page)))
        request.wfile.write(page)
        return True

    with cache_behind(tmp_path, answer) as url, pytest.raises(ManifestError, match="expected JSON"):
        teacher_cache.open(url)


def test_an_s3_server_that_is_busy_is_tried_again_and_one_that_stays_so_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()

    def answer(request: Request) -> bool:
        asked[request.path] += 1
        if asked[request.path] < 3 or "recipe" in request.path:
            body = b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"
            head(request, 500, Content_Length=str(len(body)), Content_Type="application/xml")
            request.wfile.write(body)
            return True
        return False

    build(tmp_path / "bucket" / "c", CacheConfig(format="webdataset", shapes_per_shard=4), count=COUNT)
    with http_server(tmp_path, answer) as url:
        for name, value in {
            "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        cache = teacher_cache.open("s3://bucket/c")
        assert [record.id for record in cache] == [make_record(i).id for i in range(COUNT)]
        with pytest.raises(StorageError, match=r"recipe\.json: the request to the store failed .*tried \d times"):
            teacher_cache.verify("s3://bucket/c")
    S3FileSystem.clear_instance_cache()


def test_tries_end_by_number_and_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    clock = [0.0]
    monkeypatch.setattr(remote_read, "FIRST_PAUSE", 0.25)
    monkeypatch.setattr(time, "sleep", paused.append)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def busy() -> None:
        raise HttpStatus(503, "", 3600)

    with pytest.raises(HttpStatus) as caught:
        persist(busy)
    assert caught.value.__notes__ == [f"tried {remote_read.TRIES} times"]
    assert paused == [remote_read.LONGEST_PAUSE] * (remote_read.TRIES - 1)  # what a server asks for, within reason

    def reset() -> None:
        raise ConnectionResetError

    paused.clear()
    with pytest.raises(ConnectionResetError):
        persist(reset)
    for place, pause in enumerate(paused):
        assert 0.25 * 2**place / 2 <= pause <= 0.25 * 2**place

    def slow() -> None:
        clock[0] += remote_read.PATIENCE / 2 + 1
        raise TimeoutError

    paused.clear()
    with pytest.raises(TimeoutError):
        persist(slow)
    assert len(paused) == 1
