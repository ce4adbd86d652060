"""What guard and policy add to a Celery task that sends one message by Anymail to a provider on the loopback.

A real worker (prefork, Valkey as the broker), the same messages through the stock backend in a plain task and through
ours in a `PolicyTask` with a SQLite ledger. Same run, interleaved; what counts is the time between two requests at the
provider, so that it is the whole task: fetching, running, acknowledging.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import celery
import django
from django.conf import settings
from django.core.mail import EmailMessage

from retrypolicy.queues.celery import PolicyTask

SHOP: dict[str, Any] = json.loads(os.environ.get("BENCHMARK_SHOP", "{}"))
app = celery.Celery("benchmark", broker=SHOP.get("broker"), set_as_current=False)
app.conf.update(task_ignore_result=True, worker_hijack_root_logger=False)
ROOT = Path(__file__).parents[1]
LIMIT = 1.10
_CELERY = [sys.executable, "-m", "celery", "-A", "benchmarks.queues", "worker", "-P", "prefork", "-l", "ERROR"]


def message(backend: str) -> EmailMessage:
    from django.core.mail import get_connection

    connection = get_connection(backend)
    return EmailMessage("Receipt", "Thank you. " * 40, "shop@example.com", ["ann@example.com"], connection=connection)


@app.task(acks_late=True, shared=False, name="theirs")
def theirs() -> None:
    message("anymail.backends.resend.EmailBackend").send()


@app.task(base=PolicyTask, shared=False, name="ours")
def ours() -> None:
    message("retrypolicy.anymail.backends.resend.EmailBackend").send()


def set_up() -> None:
    """In the worker."""
    settings.configure(
        INSTALLED_APPS=["anymail", "retrypolicy.django"],
        ANYMAIL={"RESEND_API_KEY": "re_key", "RESEND_API_URL": SHOP["server"]},
        RETRYPOLICY={"LEDGER": SHOP["ledger"], "SECRET": "a secret for the benchmark"},
    )
    django.setup()


if SHOP:
    set_up()


class Provider(BaseHTTPRequestHandler):
    """Takes every message, and notes when."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    seen: list[float] = []

    def do_POST(self) -> None:
        self.seen.append(time.perf_counter())
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"id": "49a3999c-0ce1-4ea6-ab68-afcd6dc2e794"}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def batch(name: str, tasks: int) -> float:
    """Seconds per task, from the first message at the provider to the last."""
    Provider.seen.clear()
    for _ in range(tasks):
        app.send_task(name)
    end = time.monotonic() + 120
    while len(Provider.seen) < tasks:
        assert time.monotonic() < end, "the worker does not work"
        time.sleep(0.005)
    return (Provider.seen[-1] - Provider.seen[0]) / (tasks - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--children", type=int, default=4, help="processes of the worker")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.guard.servers import Valkey

    valkey = Valkey(appendonly="no")
    provider = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    # Beside this file rather than in /tmp, which may be a file system in memory: a sync must reach a disk.
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        shop = {
            "broker": valkey.url,
            "server": f"http://127.0.0.1:{provider.server_port}/",
            "ledger": f"sqlite:///{folder}/sends.db",
        }
        app.conf.broker_url = valkey.url
        worker = subprocess.Popen(
            [*_CELERY, "-c", str(args.children)],
            cwd=ROOT,
            env={**os.environ, "BENCHMARK_SHOP": json.dumps(shop), "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            for name in ("theirs", "ours"):
                batch(name, args.calls)
            ratios, base = [], []
            for turn in range(args.rounds):
                names = ["theirs", "ours"] if turn % 2 else ["ours", "theirs"]
                took = {name: batch(name, args.calls) for name in names}
                ratios.append(took["ours"] / took["theirs"])
                base.append(took["theirs"])
        finally:
            worker.terminate()
            worker.wait()
            provider.shutdown()
            valkey.remove()
    ratio, peer = statistics.median(ratios), statistics.median(base) * 1e6
    what = f"a Celery task that sends one message, {args.children} children"
    print(f"{what:48s} ratio {ratio:.3f}  (peer: {peer:.0f} us a task; {args.rounds} pairs)")
    if ratio > LIMIT:
        print(f"  above {LIMIT}")


if __name__ == "__main__":
    main()
