"""Images by URL, fetched concurrently with limits in total and a host, and returned in order."""

from __future__ import annotations

import asyncio
import concurrent.futures
import email.utils
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import httpx

from clipkit import __version__
from clipkit.readers.source import Item, Rejected
from clipkit.types import Record, Url

POLL_S = 0.2  # how often a long wait checks whether to stop
RETRIED_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504))


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """Limits on concurrent requests, and when to give up."""

    max_concurrent: int = 32
    max_per_host: int = 8
    max_ahead: int = 256  # URLs requested before the first of them has arrived
    max_ahead_bytes: int = 64_000_000  # no further ones are requested while this much waits
    timeout_s: float = 30.0  # for one response, from the connection to the last byte
    num_attempts: int = 4
    backoff_s: float = 0.5  # doubled with each attempt
    max_wait_s: float = 60.0  # a longer pause is not waited for
    max_bytes: int = 100_000_000
    max_redirects: int = 5


def fetch_urls(
    items: Iterator[Item],
    options: FetchOptions,
    *,
    wanted: Callable[[Record], bool],
    stopped: Callable[[], bool],
) -> Iterator[Item]:
    """The same items in the same order; wanted ones with a URL get bytes, or are rejected.

    Ends early once `stopped` says so.
    """
    window: deque[tuple[Item, Future[bytes] | None]] = deque()
    with _Fetcher(options) as fetcher:
        for item in items:
            if isinstance(item, Record) and isinstance(item.image, Url) and wanted(item):
                window.append((item, fetcher.submit(item.image.address)))
            elif window:
                window.append((item, None))
            else:
                yield item
            while window and (_is_done(window[0]) or len(window) >= options.max_ahead or fetcher.is_full):
                if not _wait(window[0], stopped):
                    return
                yield fetcher.collect(*window.popleft())
        while window and _wait(window[0], stopped):
            yield fetcher.collect(*window.popleft())


def _is_done(entry: tuple[Item, Future[bytes] | None]) -> bool:
    return entry[1] is None or entry[1].done()


def _wait(entry: tuple[Item, Future[bytes] | None], stopped: Callable[[], bool]) -> bool:
    """Wait for a response; False once `stopped` says so."""
    while entry[1] is not None and not entry[1].done():
        if stopped():
            return False
        concurrent.futures.wait([entry[1]], timeout=POLL_S)
    return True


class FetchError(Exception):
    """Why a URL cannot be fetched; `retry_after_s` where trying again may help."""

    def __init__(self, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class _Host:
    """A server's own limit, and when it may be asked again."""

    slots: asyncio.Semaphore
    resume_at: float = 0.0
    num_users: int = 0


class _Fetcher:
    """An event loop in a thread of its own, started with the first URL."""

    def __init__(self, options: FetchOptions) -> None:
        self._options = options
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._hosts: dict[str, _Host] = {}
        self._waiting_bytes = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def is_full(self) -> bool:
        return self._waiting_bytes > self._options.max_ahead_bytes

    def submit(self, address: str) -> Future[bytes]:
        if self._loop is None:
            self._start()
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(self._fetch(address), self._loop)

    def collect(self, item: Item, future: Future[bytes] | None) -> Item:
        """The item with its bytes."""
        if future is None or not isinstance(item, Record):
            return item
        try:
            data = future.result()
        except FetchError as error:
            return Rejected(item.image_id, item.source, str(error))
        self._count(-len(data))
        return replace(item, image=data)

    def _start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fetch", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open_client(), self._loop).result()

    async def _open_client(self) -> None:
        self._slots = asyncio.Semaphore(self._options.max_concurrent)
        self._client = httpx.AsyncClient(
            timeout=self._options.timeout_s,
            follow_redirects=True,
            max_redirects=self._options.max_redirects,
            limits=httpx.Limits(max_connections=self._options.max_concurrent),
            headers={
                "User-Agent": f"clipkit/{__version__}",
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
        )

    async def _shut_down(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self._waiting_bytes += num_bytes

    async def _fetch(self, address: str) -> bytes:
        """The response's body, after as many attempts as it takes; raises FetchError."""
        name = address.split("/", 3)[2]
        host = self._hosts.setdefault(name, _Host(asyncio.Semaphore(self._options.max_per_host)))
        host.num_users += 1
        try:
            for attempt in range(1, self._options.num_attempts + 1):
                try:
                    data = await self._attempt(address, host)
                except FetchError as error:
                    if error.retry_after_s is None:
                        raise
                    if attempt == self._options.num_attempts:
                        raise FetchError(f"{error}, {attempt} times" if attempt > 1 else str(error)) from error
                    backoff_s = self._options.backoff_s * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
                    await asyncio.sleep(max(error.retry_after_s, backoff_s))
                else:
                    self._count(len(data))
                    return data
            raise AssertionError("the last attempt returns or raises")
        finally:
            host.num_users -= 1
            if not host.num_users:
                self._hosts.pop(name, None)

    async def _attempt(self, address: str, host: _Host) -> bytes:
        async with host.slots:
            await asyncio.sleep(max(0.0, host.resume_at - time.monotonic()))
            async with self._slots:
                try:
                    async with asyncio.timeout(self._options.timeout_s):
                        return await self._get(address, host)
                except (TimeoutError, httpx.TimeoutException) as error:
                    raise FetchError("timed out", retry_after_s=0.0) from error
                except httpx.TooManyRedirects as error:
                    raise FetchError(f"redirected more than {self._options.max_redirects} times") from error
                except (httpx.UnsupportedProtocol, httpx.DecodingError, httpx.InvalidURL, UnicodeError) as error:
                    raise FetchError(f"the URL cannot be fetched: {error}") from error
                except httpx.TransportError as error:
                    raise FetchError(f"the connection failed ({type(error).__name__})", retry_after_s=0.0) from error
                except FetchError:
                    raise
                except Exception as error:  # one bad address must not end the others
                    raise FetchError(f"cannot be fetched ({type(error).__name__})") from error

    async def _get(self, address: str, host: _Host) -> bytes:
        limit = self._options.max_bytes
        async with self._client.stream("GET", address) as response:
            if response.status_code != 200:
                raise self._refusal(response, host)
            if int(response.headers.get("Content-Length", 0)) > limit:
                raise FetchError(f"larger than {limit} bytes")
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > limit:
                    raise FetchError(f"larger than {limit} bytes")
            return bytes(body)

    def _refusal(self, response: httpx.Response, host: _Host) -> FetchError:
        reason = f"HTTP {response.status_code} {response.reason_phrase}".strip()
        if response.status_code not in RETRIED_STATUSES:
            return FetchError(reason)
        wait_s = retry_after_s(response.headers.get("Retry-After", ""))
        if wait_s > self._options.max_wait_s:
            return FetchError(f"{reason}, to be retried only after {wait_s:.0f} s")
        host.resume_at = max(host.resume_at, time.monotonic() + wait_s)
        return FetchError(reason, retry_after_s=wait_s)


def retry_after_s(header: str) -> float:
    """The pause that a `Retry-After` header asks for (seconds, or until a date); 0 for none."""
    if header.strip().isdigit():
        return float(header)
    try:
        date = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, date.timestamp() - time.time())
