"""What guard and policy add to a Celery task that sends one message to a provider on the loopback.

A real worker (prefork, Valkey as the broker), and tasks that acknowledge late: by Anymail, or by a `requests.Session`
of the process, plain; and the same in a `PolicyTask` with our backend or adapter and a ledger. Same run, interleaved.

For each: the processor time of the whole worker (parent and children), as the median of the pairs' ratios and as the
ratio of the lowest batches, which other work on the machine disturbed least; and the time between two requests at the
provider, in which whoever waits for a disk or another process waits for the other work, too.
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
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import celery
import django
import requests
from django.conf import settings
from django.core.mail import EmailMessage, get_connection

from retrypolicy import WORKER
from retrypolicy.queues.celery import PolicyTask
from retrypolicy.requests import mount

SHOP: dict[str, Any] = json.loads(os.environ.get("BENCHMARK_SHOP", "{}"))
app = celery.Celery("benchmark", broker=SHOP.get("broker"), set_as_current=False)
app.conf.update(task_ignore_result=True, worker_hijack_root_logger=False)
ROOT = Path(__file__).parents[1]
LIMIT = 1.10
LEDGERS = {
    "valkey": "Valkey (appendfsync always)",
    "process": "SQLite, durability=process",
    "power": "SQLite, durability=power",
}
TEXT = "Thank you. " * 40
_CELERY = [sys.executable, "-m", "celery", "-A", "benchmarks.queues", "worker", "-P", "prefork", "-l", "ERROR"]


def anymail(backend: str, **options: Any) -> Callable[[], None]:
    """As Django's `send_mail` does it: a connection for each message."""

    def work() -> None:
        connection = get_connection(backend, **options)
        EmailMessage("Receipt", TEXT, "shop@example.com", ["ann@example.com"], connection=connection).send()

    return work


def by_requests(session: requests.Session) -> Callable[[], None]:
    session.headers["Authorization"] = "Bearer re_key"
    message = {"from": "shop@example.com", "to": ["ann@example.com"], "subject": "Receipt", "text": TEXT}

    def work() -> None:
        session.post(SHOP["server"], json=message, timeout=30).raise_for_status()

    return work


def guarded(ledger: str) -> requests.Session:
    session = requests.Session()
    mount(session, WORKER, ledger=ledger, provider="resend", hosts=["127.0.0.1"])
    return session


def set_up() -> None:
    """In the worker."""
    settings.configure(
        INSTALLED_APPS=["anymail", "retrypolicy.django"],
        ANYMAIL={"RESEND_API_KEY": "re_key", "RESEND_API_URL": SHOP["server"]},
        RETRYPOLICY={"SECRET": "a secret for the benchmark"},
    )
    django.setup()
    plain: dict[str, Any] = {"acks_late": True, "reject_on_worker_lost": True, "shared": False}
    app.task(name="anymail-plain", **plain)(anymail("anymail.backends.resend.EmailBackend"))
    app.task(name="requests-plain", **plain)(by_requests(requests.Session()))
    ours = "retrypolicy.anymail.backends.resend.EmailBackend"
    for name, url in SHOP["ledgers"].items():
        options = {"base": PolicyTask, "retry_ledger": url, "shared": False}
        app.task(name=f"anymail-{name}", **options)(anymail(ours, retry_ledger=url))
        app.task(name=f"requests-{name}", **options)(by_requests(guarded(url)))


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


class Worker:
    """The worker, as a process with children."""

    def __init__(self, shop: dict[str, Any], children: int) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        self.process = subprocess.Popen(
            [*_CELERY, "-c", str(children)],
            cwd=ROOT,
            env={**os.environ, "BENCHMARK_SHOP": json.dumps(shop), "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def cpu(self) -> float:
        """Seconds of processor time, of all its processes."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        # The clock of another process, as clock_getcpuclockid(3) makes it on Linux.
        return sum(time.clock_gettime((~p << 3) | 2) for p in (pid, *map(int, children)))


def batch(name: str, tasks: int, worker: Worker, broker: Any) -> tuple[float, float]:
    """Seconds per task: of the processor, and between two messages at the provider."""
    Provider.seen.clear()
    began = worker.cpu()
    for _ in range(tasks):
        app.send_task(name)
    end = time.monotonic() + 120
    while len(Provider.seen) < tasks or broker.hlen("unacked"):
        assert time.monotonic() < end, f"{name}: the worker does not work"
        time.sleep(0.01)
    return (worker.cpu() - began) / tasks, (Provider.seen[-1] - Provider.seen[0]) / (tasks - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--children", type=int, default=2, help="processes of the worker")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.guard.servers import Valkey

    valkey, store = Valkey(appendonly="no"), Valkey()
    provider = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    # Beside this file rather than in /tmp, which may be a file system in memory: a sync must reach a disk.
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        ledgers = {
            "valkey": store.url,
            "process": f"sqlite:///{folder}/process.db?durability=process",
            "power": f"sqlite:///{folder}/power.db",
        }
        server = f"http://127.0.0.1:{provider.server_port}/emails"
        app.conf.broker_url = valkey.url
        worker = Worker({"broker": valkey.url, "server": server, "ledgers": ledgers}, args.children)
        took: dict[str, list[tuple[float, float]]] = {}
        try:
            with valkey.client() as broker:
                for turn in range(-1, args.rounds):
                    names = [f"{way}-{what}" for way in ("anymail", "requests") for what in ("plain", *LEDGERS)]
                    for name in names if turn % 2 else reversed(names):
                        found = batch(name, args.calls, worker, broker)
                        if turn >= 0:  # the first is for warming up
                            took.setdefault(name, []).append(found)
        finally:
            worker.stop()
            provider.shutdown()
            valkey.remove()
            store.remove()
    for way in ("anymail", "requests"):
        plain = took[f"{way}-plain"]
        cpu, wall = (statistics.median(pair[i] for pair in plain) * 1e6 for i in (0, 1))
        low = min(pair[0] for pair in plain) * 1e6
        print(f"a task that sends a message by {way}: {cpu:.0f} us of the processor (lowest {low:.0f}), {wall:.0f} us")
        for name, text in LEDGERS.items():
            pairs = list(zip(took[f"{way}-{name}"], plain, strict=True))
            cpu, wall = (statistics.median(ours[i] / theirs[i] for ours, theirs in pairs) for i in (0, 1))
            low = min(ours[0] for ours, _ in pairs) / min(theirs[0] for _, theirs in pairs)
            above = f"  above {LIMIT}" if low > LIMIT else ""
            print(f"  {text:30s} processor {cpu:.3f}, lowest {low:.3f}, time {wall:.3f}  ({len(pairs)} pairs){above}")


if __name__ == "__main__":
    main()
