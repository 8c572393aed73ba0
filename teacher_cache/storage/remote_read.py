"""Bounded requests to a store: bounded size, time without a byte, and number of tries.

Nothing that a store claims is relied on: neither a length, nor that an answer ends, nor that one comes at all.
"""

import asyncio
import errno
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from teacher_cache.errors import causes

__all__ = ["CONNECT_SECONDS", "STALL_SECONDS", "HttpStatus", "TooLarge", "client_options", "part", "persist", "stream"]

T = TypeVar("T")
Take = Callable[[bytes], object]

CONNECT_SECONDS = 10.0
STALL_SECONDS = 20.0  # without a byte, after which an answer counts as lost
TRIES = 5
FIRST_PAUSE = 0.25  # seconds before the second try; doubled for each one after, and each drawn from half of it to all
LONGEST_PAUSE = 10.0  # of those a server asks for
PATIENCE = 40.0  # seconds after which nothing is tried again
PIECE = 1 << 18

_BUSY = {408, 425, 429, 500, 502, 503, 504}
_LOST = {
    errno.EBUSY, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED,
    errno.EPIPE, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTUNREACH, errno.EHOSTDOWN,
}  # fmt: skip
# By name, so that no client library need be imported: aiohttp's, botocore's, fsspec's, requests'.
_LOST_NAMES = {
    "ClientConnectionError", "ClientPayloadError", "HTTPClientError", "IncompleteReadError", "IncompleteRead",
    "ResponseStreamingError", "FSTimeoutError", "ChunkedEncodingError", "ResponseParserError",
}  # fmt: skip


class TooLarge(Exception):
    """A file is longer than allowed; reading stopped at that limit."""


class HttpStatus(Exception):
    """A web server's answer that is not a file.

    status  of the answer
    pause   seconds the server asks to wait, or None
    """

    def __init__(self, status: int, reason: str, pause: float | None = None) -> None:
        super().__init__(f"HTTP {status} {reason}".rstrip())
        self.status = status
        self.pause = pause


def persist(call: Callable[[], T]) -> T:
    """Return the result of ``call``, retrying with pauses while it fails in a transient way."""
    begun = time.monotonic()
    for attempt in range(1, TRIES + 1):
        try:
            return call()
        except Exception as error:
            if not _passes(error):
                raise
            if attempt == TRIES or time.monotonic() - begun > PATIENCE:
                error.add_note(f"tried {attempt} times")
                raise
            # Jitter: the readers that one overloaded store turned away must not all return at the same moment.
            pause = FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(0.5, 1)
            asked = error.pause if isinstance(error, HttpStatus) else None
        time.sleep(max(pause, min(asked or 0, LONGEST_PAUSE)))
    raise AssertionError("unreachable")


def stream(fs: Any, path: str, limit: int, take: Take) -> int:
    """Hand a file piece by piece to ``take``; -> its size.

    limit  bytes it may have. Raises TooLarge beyond, before more than a piece beyond is read; FileNotFoundError;
           HttpStatus for any answer of a web server but the file or a 404; whatever else the store's client raises.
    """
    taken = 0

    def counted(piece: bytes) -> None:
        nonlocal taken
        taken += len(piece)
        if taken > limit:
            raise TooLarge
        take(piece)

    if hasattr(fs, "set_session") and hasattr(fs, "encode_url"):
        _run(fs, _stream_http(fs, path, limit, counted))
    elif getattr(fs, "async_impl", False) and _has_open_async(fs):
        _run(fs, _stream_async(fs, path, counted))
    else:
        with fs.open(path, "rb") as file:
            while piece := file.read(PIECE):
                counted(piece)
    return taken


def part(fs: Any, path: str, offset: int, size: int) -> bytes:
    """Return ``size`` bytes of a file from ``offset``, in one request; fewer where the file ends before.

    Raises FileNotFoundError; HttpStatus for a web server that refuses, or sends the whole file instead of a part;
    whatever else the store's client raises.
    """
    if hasattr(fs, "set_session") and hasattr(fs, "encode_url"):
        pieces: list[bytes] = []
        _run(fs, _part_http(fs, path, offset, size, pieces.append))
        return b"".join(pieces)
    if getattr(fs, "async_impl", False):
        return bytes(fs.cat_file(path, start=offset, end=offset + size))
    # Others open a file for it, which by default reads megabytes ahead: of every shape, as each is opened anew.
    return bytes(fs.cat_file(path, start=offset, end=offset + size, cache_type="none"))


def client_options(protocol: str, configured: dict[str, Any]) -> dict[str, Any]:
    """Return options of fsspec's client of a protocol, as limits to its waits; the user's own settings stand before."""
    if protocol in ("http", "https"):
        try:
            import aiohttp
        except ImportError:
            return {}  # fsspec says which package is missing
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS)
        return {"client_kwargs": {"timeout": timeout} | dict(configured.get("client_kwargs") or {})}
    if protocol in ("s3", "s3a"):
        limits = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": STALL_SECONDS,
            "retries": {"total_max_attempts": 1, "mode": "standard"},  # `persist` tries again, and s3fs does
        }
        return {"config_kwargs": limits | dict(configured.get("config_kwargs") or {})}
    if protocol == "hf":
        # Its client remembers listings whatever it is told, and cuts files that have grown: a client for each opening.
        return {"skip_instance_cache": True}
    return {}


async def _stream_http(fs: Any, url: str, limit: int, take: Take) -> None:
    """Our own reading of an answer: fsspec's takes every failure but some for a missing file, and reads without end."""
    session = await fs.set_session()
    options = dict(fs.kwargs)
    # Without compression a stated length is the file's, and a small answer cannot unpack to a large one.
    options["headers"] = {"Accept-Encoding": "identity"} | dict(options.get("headers") or {})
    async with session.get(fs.encode_url(url), **options) as answer:
        if answer.status == 404:
            raise FileNotFoundError(errno.ENOENT, "the server has no such file (HTTP 404)", url)
        if answer.status != 200:
            raise HttpStatus(answer.status, answer.reason or "", _seconds(answer.headers.get("Retry-After", "")))
        if (answer.content_length or 0) > limit and "Content-Encoding" not in answer.headers:
            raise TooLarge
        async for piece in answer.content.iter_chunked(PIECE):
            take(piece)


async def _part_http(fs: Any, url: str, offset: int, size: int, take: Take) -> None:
    session = await fs.set_session()
    options = dict(fs.kwargs)
    asked = {"Accept-Encoding": "identity", "Range": f"bytes={offset}-{offset + size - 1}"}
    options["headers"] = dict(options.get("headers") or {}) | asked
    async with session.get(fs.encode_url(url), **options) as answer:
        if answer.status == 404:
            raise FileNotFoundError(errno.ENOENT, "the server has no such file (HTTP 404)", url)
        if answer.status == 416:  # the file ends before this range
            return
        if answer.status == 200:  # the whole file, for every shape of it
            raise HttpStatus(200, "the server ignores ranges and sends whole files; copy the corpus to a folder")
        if answer.status != 206:
            raise HttpStatus(answer.status, answer.reason or "", _seconds(answer.headers.get("Retry-After", "")))
        taken = 0
        async for piece in answer.content.iter_chunked(PIECE):
            taken += len(piece)
            if taken > size:
                raise HttpStatus(206, f"the server sends more than the {size} bytes asked for")
            take(piece)


async def _stream_async(fs: Any, path: str, take: Take) -> None:
    file = await fs.open_async(path, "rb")
    try:
        while piece := await asyncio.wait_for(file.read(PIECE), STALL_SECONDS):
            take(piece)
    finally:
        body = getattr(file, "r", None)
        if body is not None:
            body.close()  # or the connection is held until the rest of the file has been sent


def _run(fs: Any, steps: Any) -> None:
    from fsspec.asyn import sync

    sync(fs.loop, lambda: steps)


def _has_open_async(fs: Any) -> bool:
    from fsspec.asyn import AsyncFileSystem

    return type(fs).open_async is not AsyncFileSystem.open_async


def _seconds(text: str) -> float | None:
    return float(text) if text.isdecimal() and len(text) < 6 else None


def _passes(error: BaseException) -> bool:
    """Check whether a failure may be transient: a busy server, a lost connection, a time-out."""
    return any(_passes_itself(link) for link in causes(error))


def _passes_itself(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status in _BUSY
    if isinstance(error, TimeoutError | ConnectionError) or (isinstance(error, OSError) and error.errno in _LOST):
        return True
    return bool({kind.__name__ for kind in type(error).__mro__} & _LOST_NAMES)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error carries: ours, aiohttp's and gcsfs' classes, and botocore's answers."""
    answer = getattr(error, "response", None)
    found = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    for value in (found, getattr(error, "status", None)):
        if isinstance(value, int) and 100 <= value < 600:
            return value
    value = None if hasattr(error, "status") else getattr(error, "code", None)
    return value if isinstance(value, int) and 100 <= value < 600 else None
