"""Fetching from a real server on loopback that behaves as servers on the web do."""

from __future__ import annotations

import email.utils
import json
import socket
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import lance
import pytest
from corpora import make_image

from clipkit.readers import Item, Rejected
from clipkit.readers.fetch import FetchOptions, fetch_urls, retry_after_s
from clipkit.types import Record, Url
from clipkit.workflows.ingest import IngestOptions, ingest

QUICK = FetchOptions(timeout_s=10.0, backoff_s=0.05, max_bytes=100_000, max_wait_s=5.0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        _, kind, *rest = self.path.split("/")
        number = int(rest[0]) if rest and rest[0].isdigit() else 0
        with self.server.counting():
            self.server.requests[self.path] += 1
            getattr(self, f"do_{kind}")(number)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def attempt(self) -> int:
        return self.server.requests[self.path]

    def do_ok(self, number: int) -> None:
        self.answer(200, make_image(number))

    def do_slow(self, number: int) -> None:
        time.sleep(0.02 * (number % 5))
        self.do_ok(number)

    def do_hang(self, number: int) -> None:
        self.server.released.wait(20)

    def do_drip(self, number: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b"x")
            self.wfile.flush()
            if self.server.released.wait(0.1):
                break
        self.close_connection = True

    def do_reset(self, number: int) -> None:
        if self.attempt() > 2:
            self.do_ok(number)
            return
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def do_promises_more(self, number: int) -> None:
        data = make_image(number)
        self.answer(200, data, Content_Length=str(len(data) + 100))
        self.close_connection = True

    def do_promises_less(self, number: int) -> None:
        data = make_image(number)
        self.answer(200, data, Content_Length=str(len(data) // 2))
        self.close_connection = True

    def do_status(self, number: int) -> None:
        self.answer(number, b"<html>no</html>")

    def do_busy(self, number: int) -> None:
        if self.attempt() > number:
            self.do_ok(number)
        else:
            self.answer(429, Retry_After="1")

    def do_broken(self, number: int) -> None:
        if self.attempt() > number:
            self.do_ok(number)
        else:
            self.answer(500)

    def do_tomorrow(self, number: int) -> None:
        self.answer(503, Retry_After=email.utils.formatdate(time.time() + 86400, usegmt=True))

    def do_hop(self, number: int) -> None:
        target = f"/hop/{number - 1}" if number else "/ok/0"
        self.answer(302, Location=target)

    def do_to_file(self, number: int) -> None:
        self.answer(302, Location="file:///etc/hostname")

    def do_big(self, number: int) -> None:
        self.answer(200, Content_Length="200000")
        self.close_connection = True

    def do_endless(self, number: int) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while not self.server.released.is_set():
                self.wfile.write(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: Counter[str] = Counter()
        self.released = threading.Event()
        self.num_open = self.most_open = 0
        self._lock = threading.Lock()

    def counting(self) -> Server:
        return self

    def __enter__(self) -> Server:
        with self._lock:
            self.num_open += 1
            self.most_open = max(self.most_open, self.num_open)
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self.num_open -= 1

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the test."""

    def records(self, *paths: str) -> Iterator[Item]:
        for path in paths:
            address = f"http://127.0.0.1:{self.server_address[1]}/{path}"
            yield Record(path, Url(address), ("a caption",), f"urls.csv:{path}")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(items: Iterator[Item], options: FetchOptions = QUICK) -> list[Item]:
    return list(fetch_urls(items, options, wanted=lambda record: True, stopped=lambda: False))


def test_many_in_order_and_within_limits(server: Server) -> None:
    options = FetchOptions(max_concurrent=6, max_per_host=6, max_ahead=50)
    items = fetch(server.records(*(f"slow/{number}" for number in range(300))), options)
    assert [item.image for item in items if isinstance(item, Record)] == [make_image(number) for number in range(300)]
    assert 2 <= server.most_open <= 6


def test_limit_a_host(server: Server) -> None:
    fetch(server.records(*(f"slow/{number}" for number in range(40))), FetchOptions(max_per_host=2))
    assert server.most_open <= 2


def test_what_comes_right_in_the_end(server: Server) -> None:
    started = time.monotonic()
    items = fetch(server.records("reset/1", "broken/2", "busy/1", "hop/4"))
    assert [item.image for item in items if isinstance(item, Record)] == [make_image(n) for n in (1, 2, 1, 0)]
    assert time.monotonic() - started >= 1.0  # as Retry-After asks
    assert server.requests["/broken/2"] == 3


@pytest.mark.parametrize(
    ("path", "reason", "num_requests"),
    [
        ("status/404", "HTTP 404 Not Found", 1),
        ("status/204", "HTTP 204 No Content", 1),
        ("status/500", "HTTP 500 Internal Server Error, 4 times", 4),
        ("status/429", "HTTP 429 Too Many Requests, 4 times", 4),
        ("tomorrow", "to be retried only after 86", 1),
        ("hop/9", "redirected more than 5 times", 1),
        ("to_file", "the URL cannot be fetched", 1),
        ("big", "larger than 100000 bytes", 1),
        ("endless", "larger than 100000 bytes", 1),
        ("promises_more/1", "the connection failed (RemoteProtocolError), 4 times", 4),
    ],
)
def test_what_is_rejected(server: Server, path: str, reason: str, num_requests: int) -> None:
    [item] = fetch(server.records(path))
    assert isinstance(item, Rejected)
    assert reason in item.reason
    assert (item.image_id, item.source) == (path, f"urls.csv:{path}")
    assert server.requests[f"/{path}"] == num_requests


@pytest.mark.parametrize("path", ["hang", "drip"])
def test_slow_answers_time_out(server: Server, path: str) -> None:
    options = FetchOptions(timeout_s=1.0, backoff_s=0.01, num_attempts=2)
    items = fetch(server.records(path, "ok/1"), options)
    assert isinstance(items[0], Rejected)
    assert items[0].reason == "timed out, 2 times"
    assert isinstance(items[1], Record)


def test_a_body_that_was_announced_shorter_is_cut(server: Server) -> None:
    [item] = fetch(server.records("promises_less/1"))
    assert isinstance(item, Record)
    assert item.image == make_image(1)[: len(make_image(1)) // 2]  # the check of images finds it truncated


def test_no_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/x.jpg"
        addresses = (address, "http://[", "http://127.0.0.1:99999/x.jpg")
        items = iter([Record("x", Url(address), ("c",), "s") for address in addresses])
        refused, *malformed = fetch(items, FetchOptions(backoff_s=0.01))
    assert isinstance(refused, Rejected)
    assert refused.reason == "the connection failed (ConnectError), 4 times"
    assert all(isinstance(item, Rejected) for item in malformed)


def test_others_pass_through_and_the_unwanted_are_not_fetched(server: Server) -> None:
    others: list[Item] = [Record("a", b"data", ("c",), "s"), Rejected("b", "s", "why")]
    urls = list(server.records("ok/1", "ok/2"))
    items = fetch_urls(
        iter([*others, *urls, *others]),
        FetchOptions(),
        wanted=lambda record: record.image_id != "ok/1",
        stopped=lambda: False,
    )
    assert [item.image_id for item in items] == ["a", "b", "ok/1", "ok/2", "a", "b"]
    assert server.requests == {"/ok/2": 1}


def test_memory_is_bounded_while_the_first_is_waited_for(server: Server) -> None:
    options = FetchOptions(max_ahead=20, timeout_s=0.5, num_attempts=1)
    taken = []

    def records() -> Iterator[Item]:
        for record in server.records("hang", *(f"ok/{number}" for number in range(100))):
            taken.append(record)
            yield record

    items = fetch_urls(records(), options, wanted=lambda record: True, stopped=lambda: False)
    assert isinstance(next(items), Rejected)
    assert len(taken) == 20
    assert len(list(items)) == 100


def test_stopping_does_not_wait_for_slow_servers(server: Server) -> None:
    started = time.monotonic()
    stopped = lambda: time.monotonic() - started > 0.3  # noqa: E731
    records = server.records("hang", "ok/1")
    assert list(fetch_urls(records, FetchOptions(), wanted=lambda record: True, stopped=stopped)) == []
    assert time.monotonic() - started < 5
    assert not [thread for thread in threading.enumerate() if thread.name == "fetch"]


def test_retry_after() -> None:
    assert retry_after_s("7") == 7
    assert 50 < retry_after_s(email.utils.formatdate(time.time() + 60, usegmt=True)) <= 60
    assert retry_after_s("soon") == retry_after_s("") == 0


def test_ingest_of_a_table_of_urls(server: Server, tmp_path: Path) -> None:
    base = f"http://127.0.0.1:{server.server_address[1]}"
    kinds = [*(f"slow/{number}" for number in range(40)), "status/404", "promises_less/3", "reset/2", "to_file"]
    lines = ["url,caption", *(f"{base}/{kind},a picture" for kind in kinds)]
    (tmp_path / "urls.csv").write_text("\n".join(lines))
    summary = ingest([str(tmp_path / "urls.csv")], str(tmp_path / "x.lance"), IngestOptions())
    assert (summary.counts.rows, summary.rejected) == (41, 3)
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    reasons = {line["id"].removeprefix(f"{base}/"): line["reason"] for line in rejected}
    assert reasons["status/404"] == "HTTP 404 Not Found"
    assert reasons["promises_less/3"].startswith("truncated")
    images = lance.dataset(str(tmp_path / "x.lance")).to_table(columns=["image"]).column(0).to_pylist()
    assert images == [make_image(number) for number in [*range(40), 2]]


def test_limits_by_flags(
    server: Server, tmp_path: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    base = f"http://127.0.0.1:{server.server_address[1]}"
    kinds = ["ok/1", "hang", "big", "status/500"]
    (tmp_path / "urls.csv").write_text("\n".join(["url,caption", *(f"{base}/{kind},a picture" for kind in kinds)]))
    flags = ("--fetch-timeout", "1", "--fetch-attempts", "1", "--fetch-max-mb", "0.1")
    done = run_cli("ingest", tmp_path / "urls.csv", tmp_path / "x.lance", *flags, "--json")
    assert json.loads(done.stdout)["rows"] == 1
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert reasons == ["timed out", "larger than 100000 bytes", "HTTP 500 Internal Server Error"]
