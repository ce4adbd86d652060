"""What the adapter costs on a call: against a bare HTTPAdapter, and against urllib3's Retry on the path 503, 503, 200.

Same run, interleaved, medians of ratios of paired batches, below 1 is quicker. Beside the time on the wall stands that
of the process, which other work on the machine disturbs less. An absolute time on a shared machine means little.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from retrypolicy import Constant, RetryPolicy
from retrypolicy.requests import RetryAdapter
from retrypolicy.urllib3.sending import MAX_IDLE
from retrypolicy.urllib3.wire import Watch, track

THREADS = 8

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"


def serve(listener: socket.socket) -> None:
    """A keep-alive server: /ok answers 200; /busy answers 503, 503, 200 in turn."""

    def talk(conn: socket.socket) -> None:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pending, turn = b"", 0
        while True:
            data = conn.recv(65536)
            if not data:
                return
            pending += data
            while True:
                head, found, rest = pending.partition(b"\r\n\r\n")
                if not found:
                    break
                length = 0
                for line in head.split(b"\r\n")[1:]:
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                if len(rest) < length:
                    break
                pending = rest[length:]
                if head.split(b" ", 2)[1] == b"/busy":
                    turn = (turn + 1) % 3
                    conn.sendall(OK if turn == 0 else BUSY)
                else:
                    conn.sendall(OK)

    while True:
        conn, _ = listener.accept()
        threading.Thread(target=talk, args=(conn,), daemon=True).start()


def session(adapter: HTTPAdapter) -> requests.Session:
    made = requests.Session()
    made.trust_env = False
    made.mount("http://", adapter)
    return made


class Watched(HTTPAdapter):
    """The watch alone: an HTTPAdapter on watched connections, without engine and guard."""

    def send(self, request: Any, **options: Any) -> requests.Response:  # type: ignore[override]  # by keyword only
        with Watch(max_idle=MAX_IDLE):
            return super().send(request, **options)

    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        pool = super().get_connection_with_tls_context(*args, **options)
        track(pool)
        return pool


def batch(made: requests.Session, method: str, url: str, calls: int) -> None:
    body = b"x" * 1000 if method != "GET" else None
    for _ in range(calls):
        response = made.request(method, url, data=body)
        assert response.status_code == 200


def in_threads(made: requests.Session, method: str, url: str, calls: int) -> None:
    threads = [threading.Thread(target=batch, args=(made, method, url, calls // THREADS)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def took(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the wall, and of this process."""
    began, worked = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - worked


def compare(
    name: str,
    ours: HTTPAdapter,
    theirs: HTTPAdapter,
    method: str,
    url: str,
    args: argparse.Namespace,
    run: Callable[[requests.Session, str, str, int], None] = batch,
) -> None:
    both = [session(theirs), session(ours)]
    works = [lambda made=made: run(made, method, url, args.calls) for made in both]
    for work in works:
        work()
    ratios, base = [], []
    gc.disable()
    for turn in range(args.rounds):
        order = (0, 1) if turn % 2 else (1, 0)
        times = {who: took(works[who]) for who in order}
        ratios.append([mine / peers for mine, peers in zip(times[1], times[0], strict=True)])
        base.append(times[0][1] / args.calls)
    gc.enable()
    wall, process = (statistics.median(column) for column in zip(*ratios, strict=True))
    peer = statistics.median(base) * 1e6
    print(f"{name:50s} wall {wall:.3f}, process {process:.3f}  (peer: {peer:.0f} us a call; {args.rounds} pairs)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--calls", type=int, default=24)
    args = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0))
    server = multiprocessing.get_context("fork").Process(target=serve, args=(listener,), daemon=True)
    server.start()
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    ok, busy = base + "/ok", base + "/busy"
    retry = Retry(total=3, status_forcelist=[503], backoff_factor=0, raise_on_status=False)
    policy = RetryPolicy(backoff=Constant(seconds=0))
    try:
        for method in ("GET", "POST"):
            compare(f"{method}, 200: the watch alone / HTTPAdapter", Watched(), HTTPAdapter(), method, ok, args)
            compare(f"{method}, 200: RetryAdapter / HTTPAdapter", RetryAdapter(), HTTPAdapter(), method, ok, args)
        name = f"POST, 200, {THREADS} threads: RetryAdapter / HTTPAdapter"
        compare(name, RetryAdapter(), HTTPAdapter(), "POST", ok, args, in_threads)
        name = "PUT, 503 503 200: RetryAdapter / urllib3 Retry"
        compare(name, RetryAdapter(policy), HTTPAdapter(max_retries=retry), "PUT", busy, args)
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
