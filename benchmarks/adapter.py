"""What the adapter costs on a call: against a bare HTTPAdapter, and against urllib3's Retry on the path 503, 503, 200.

Same run, interleaved, medians of ratios of paired batches; an absolute time on a shared machine means little.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import socket
import statistics
import time

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from retrypolicy import Constant, RetryPolicy
from retrypolicy.requests import RetryAdapter

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"


def serve(listener: socket.socket) -> None:
    """A keep-alive server: /ok answers 200; /busy answers 503, 503, 200 in turn."""
    import threading

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


def batch(made: requests.Session, method: str, url: str, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        response = made.request(method, url, data=b"x" * 1000 if method != "GET" else None)
        assert response.status_code == 200
    return time.perf_counter() - began


def compare(
    name: str, ours: requests.Session, theirs: requests.Session, method: str, url: str, args: argparse.Namespace
) -> float:
    for one in (ours, theirs):
        batch(one, method, url, args.calls)
    ratios, base = [], []
    gc.disable()
    for turn in range(args.rounds):
        pair = [(theirs, "theirs"), (ours, "ours")]
        if turn % 2:
            pair.reverse()
        took = {who: batch(made, method, url, args.calls) for made, who in pair}
        ratios.append(took["ours"] / took["theirs"])
        base.append(took["theirs"] / args.calls)
    gc.enable()
    ratio = statistics.median(ratios)
    peer = statistics.median(base) * 1e6
    print(f"{name:48s} ratio {ratio:.3f}  (peer: {peer:.0f} us a call; {args.rounds} pairs)")
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=100)
    args = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0))
    server = multiprocessing.get_context("fork").Process(target=serve, args=(listener,), daemon=True)
    server.start()
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        compare(
            "GET, 200: RetryAdapter / HTTPAdapter",
            session(RetryAdapter()),
            session(HTTPAdapter()),
            "GET",
            base + "/ok",
            args,
        )
        compare(
            "POST, 200: RetryAdapter / HTTPAdapter",
            session(RetryAdapter()),
            session(HTTPAdapter()),
            "POST",
            base + "/ok",
            args,
        )
        retry = Retry(total=3, status_forcelist=[503], backoff_factor=0, raise_on_status=False)
        policy = RetryPolicy(backoff=Constant(seconds=0))
        compare(
            "PUT, 503 503 200: RetryAdapter / urllib3 Retry",
            session(RetryAdapter(policy)),
            session(HTTPAdapter(max_retries=retry)),
            "PUT",
            base + "/busy",
            args,
        )
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
