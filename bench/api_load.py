"""Load on an HTTP server, and what the server spends on it: closed loops, streams, downloads."""

import asyncio
import http.client
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import psutil


@dataclass(frozen=True)
class Asked:
    """One kind of request."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Spent:
    """What a closed loop measured; `latencies` in seconds, sorted."""

    requests: int
    cpu_seconds: float
    seconds: float
    latencies: Sequence[float]

    @property
    def per_cpu_second(self) -> float:
        """Requests that the server answers with a second of its processor time."""
        return self.requests / self.cpu_seconds

    def percentile(self, share: float) -> float:
        """The latency that this share of the requests stays below."""
        return self.latencies[min(int(share * len(self.latencies)), len(self.latencies) - 1)]


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def closed_loop(url: str, pid: int, asked: Asked, *, requests: int, threads: int = 4) -> Spent:
    """So many requests over kept connections, each thread one after the other."""
    per_thread = requests // threads
    latencies: list[float] = []
    before, started = cpu_seconds(pid), time.perf_counter()
    workers = [
        threading.Thread(target=_repeat, args=(url, asked, per_thread, latencies))
        for _ in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - started
    return Spent(len(latencies), cpu_seconds(pid) - before, seconds, sorted(latencies))


def _repeat(url: str, asked: Asked, count: int, latencies: list[float]) -> None:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    for _ in range(count):
        started = time.perf_counter()
        connection.request(asked.method, asked.path, asked.body, dict(asked.headers or {}))
        answer = connection.getresponse()
        answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{asked.method} {asked.path}: {answer.status}")
        latencies.append(time.perf_counter() - started)
    connection.close()


_SENT_AT = re.compile(rb'"sent_at":([0-9.]+)')


class _Listener(asyncio.Protocol):
    """One event stream, read at next to no cost: the server's processor is beside this one."""

    def __init__(self, request: bytes, delays: list[float]) -> None:
        self.begun = asyncio.get_running_loop().create_future()
        self._request = request
        self._delays = delays
        self._left = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.time()
        if not self.begun.done():
            self.begun.set_result(None)
        whole, end, rest = (self._left + data).rpartition(b"\n\n")
        self._left = rest
        self._delays += [now - float(sent) for sent in _SENT_AT.findall(whole + end)]


async def listen(
    url: str, paths: Sequence[str], key: str, begun: Callable[[], None], seconds: float
) -> list[float]:
    """Delays, in seconds, of every `sent_at` that the streams deliver within that time.

    It counts from `begun`, which is called once every stream has been answered.
    """
    place, loop = urlsplit(url), asyncio.get_running_loop()
    delays: list[float] = []
    transports = []
    for path in paths:
        head = f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n\r\n"
        transport, listener = await loop.create_connection(
            partial(_Listener, head.encode(), delays), place.hostname or "", place.port or 80
        )
        transports.append(transport)
        await asyncio.wait_for(listener.begun, 60)
    begun()
    await asyncio.sleep(seconds)
    for transport in transports:
        transport.close()
    return sorted(delays)


def download(url: str, path: str, key: str) -> tuple[int, float]:
    """Bytes received and seconds taken; the bytes are thrown away."""
    place = urlsplit(url)
    buffer = bytearray(1 << 20)
    with socket.create_connection((place.hostname or "", place.port or 80), 60) as connection:
        head = (
            f"GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n"
            f"Authorization: Bearer {key}\r\n\r\n"
        )
        connection.sendall(head.encode())
        started, received = time.perf_counter(), 0
        while count := connection.recv_into(buffer):
            received += count
        return received, time.perf_counter() - started
