"""docs/recipes.md as it stands: each recipe in the real worker of its queue, in a process of its own.

Ground truth is what the server took. `nox -s recipes` installs the packages; without them the tests are skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest

from retrypolicy.guard import Phase, Record, open_ledger
from retrypolicy.guard.key import Secret, find
from retrypolicy.testing import Answer, Close, FaultServer, Stall

from ..docs.test_examples import blocks  # noqa: TID252 - no other path is sure
from ..guard.servers import Postgres, Valkey, new_valkey, postgres  # noqa: TID252 - no other path is sure
from .workers import ROOT, wait_for

__all__ = ["new_valkey", "postgres"]

PAGE = ROOT / "docs" / "recipes.md"
SECRET = "a secret for recipes"
POSTMARK = b'{"ErrorCode": 0, "Message": "OK", "MessageID": "1", "SubmittedAt": "2026-01-01T00:00:00Z", "To": "x@y.z"}'

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")]


class Recipe:
    """One recipe of the page, as a module of its own; its server, and its worker."""

    def __init__(self, heading: str, place: Path, hosts: dict[str, str]) -> None:
        self.place, self.name = place, f"recipe_{heading.replace('-', '_')}"
        self.asked: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self.workers: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self.server = FaultServer(self._step)
        self.hosts, self.heading = hosts, heading
        self.ledger = f"sqlite:///{place}/sends.db"

    def __enter__(self) -> Self:
        self.server.__enter__()
        lines = PAGE.read_text(encoding="utf-8").splitlines()
        under, sections = "", {}
        for number, line in enumerate(lines, start=1):
            under = line[3:] if line.startswith("## ") else under
            sections[number] = under
        shared = [] if self.heading == "django-post-office" else [""]
        source = "\n\n".join(code for line, code in blocks(PAGE) if sections[line] in [*shared, self.heading])
        for host, real in {"https://api.example.com": self.server.url("").rstrip("/"), **self.hosts}.items():
            assert host in source or host.startswith("https")
            source = source.replace(host, real)
        (self.place / f"{self.name}.py").write_text(source, encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers:
            self.kill(worker)
        self.server.__exit__(None, None, None)

    def _step(self, request: Any) -> Any:
        """What the server does depends on the order's name, and on how often it was asked for."""
        said = json.loads(request.body)
        order = str(said.get("order") or said["To"].partition("@")[0])
        with self._lock:
            self.asked[order] += 1
            first = self.asked[order] == 1
            if order == "busy" and first:
                return Answer(503, headers={"Retry-After": "1"})
            if order == "refused":
                return Answer(422)
            self.taken[order] += 1
        if order == "lost":
            return Close("request")
        if order == "killed" and first:
            return Stall()
        return Answer(200, body=POSTMARK, headers={"Content-Type": "application/json"})

    # -- its processes

    def run(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(self.place), str(ROOT), *filter(None, sys.path)])
        with open(self.place / "worker.log", "ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "tests.queues.recipe_worker", *command],
                cwd=self.place,
                env={**os.environ, "PYTHONPATH": path, "RETRYPOLICY_SECRET": SECRET, **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)
        return worker

    def kill(self, worker: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()

    @contextmanager
    def module(self) -> Iterator[ModuleType]:
        """The page's code in this process, to enqueue with."""
        spec = importlib.util.spec_from_file_location(self.name, self.place / f"{self.name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = module
        here = os.getcwd()
        os.chdir(self.place)
        try:
            spec.loader.exec_module(module)
            yield module
            module.session.close()
        finally:
            os.chdir(here)
            del sys.modules[self.name]

    # -- what became of it

    def record(self, order: str) -> Record | None:
        ledger = open_ledger(self.ledger)
        try:
            return find(ledger, Secret.of(SECRET), f"receipt/{order}")[0]
        finally:
            ledger.close()

    def stands_at(self, **orders: Phase) -> bool:
        found = {order: self.record(order) for order in orders}
        return all(record is not None and record.phase is orders[order] for order, record in found.items())

    def taken_once(self, *orders: str) -> None:
        assert {order: self.taken[order] for order in orders} == dict.fromkeys(orders, 1), self.log

    @property
    def log(self) -> str:
        return (self.place / "worker.log").read_text()


ENDS = {"good": Phase.DONE, "busy": Phase.DONE, "lost": Phase.HELD, "refused": Phase.FAILED}


def check(recipe: Recipe, *, refusals: int = 1, **also: Phase) -> None:
    wait_for(lambda: recipe.stands_at(**ENDS, **also), "the end")
    recipe.taken_once("good", "busy", "lost", *also)
    assert (recipe.asked["busy"], recipe.asked["refused"]) == (2, refusals)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_rq(new_valkey: Callable[..., Valkey], tmp_path: Path) -> None:
    """Its work-horse is killed while the server has the request: the job runs again, and waits."""
    pytest.importorskip("rq")
    valkey = new_valkey()
    with Recipe("RQ", tmp_path, {"redis://localhost:6379/1": valkey.url}) as recipe, recipe.module() as page:
        worker = recipe.run("rq.cli", "worker", "receipts", "--with-scheduler", "--url", valkey.url)
        page.enqueue_in_rq("killed")
        wait_for(lambda: recipe.taken["killed"], "the request")
        os.kill(children(worker.pid)[-1], signal.SIGKILL)  # the first one is the scheduler
        for order in ENDS:
            page.enqueue_in_rq(order)
        check(recipe, killed=Phase.HELD)
        assert recipe.log.count("rq_receipt('killed')") > 1
        assert recipe.log.count("rq_receipt('refused')") == 1
        page.queue.connection.close()


def test_dramatiq(new_valkey: Callable[..., Valkey], tmp_path: Path) -> None:
    """A message comes again, as after a missed heartbeat."""
    pytest.importorskip("dramatiq")
    valkey = new_valkey()
    with Recipe("dramatiq", tmp_path, {"redis://localhost:6379/2": valkey.url}) as recipe, recipe.module() as page:
        recipe.run("dramatiq", recipe.name, "--processes", "1", "--threads", "2")
        good = page.dramatiq_receipt.message("good")
        page.broker.enqueue(good)
        wait_for(lambda: recipe.stands_at(good=Phase.DONE), "the first delivery")
        for order in ENDS:
            page.broker.enqueue(good) if order == "good" else page.enqueue_in_dramatiq(order)
        check(recipe)
        page.broker.close()


def test_huey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its consumer is killed while the server has the request: the sweep leaves that one alone."""
    pytest.importorskip("huey")
    monkeypatch.setenv("RETRYPOLICY_SECRET", SECRET)
    with Recipe("huey", tmp_path, {}) as recipe, recipe.module() as page:
        command = ("huey.bin.huey_consumer", f"{recipe.name}.huey", "--scheduler-interval", "1")
        worker = recipe.run(*command)
        page.enqueue_in_huey("killed")
        wait_for(lambda: recipe.taken["killed"], "the request")
        recipe.kill(worker)
        recipe.run(*command)
        unseen = ["killed", "good", "busy", "lost"]
        page.sweep([*unseen, "refused"])
        page.sweep(unseen)  # too soon: some are in the queue twice
        wait_for(lambda: recipe.stands_at(**ENDS), "the end")
        page.sweep(unseen)
        check(recipe)
        recipe.taken_once("killed")
        page.huey.storage.close()


def test_procrastinate(postgres: Postgres, tmp_path: Path) -> None:
    """Its worker is killed while the server has the request: the stalled job runs again, and waits."""
    pytest.importorskip("procrastinate")
    import psycopg

    with psycopg.connect(postgres.dsn, autocommit=True) as admin:
        admin.execute("CREATE DATABASE recipes")
    dsn = postgres.dsn.replace("dbname=postgres", "dbname=recipes")
    with Recipe("procrastinate", tmp_path, {"postgresql://localhost/shop": dsn}) as recipe, recipe.module() as page:

        async def prepare() -> None:
            async with page.app.open_async():
                await page.app.schema_manager.apply_schema_async()

        async def time_passes() -> None:
            async with page.app.open_async():
                with psycopg.connect(dsn, autocommit=True) as admin:
                    admin.execute("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour'")
                await page.retry_stalled(0)

        asyncio.run(prepare())
        command = ("procrastinate", "-a", f"{recipe.name}.app", "worker", "--fetch-job-polling-interval", "0.2")
        worker = recipe.run(*command)
        asyncio.run(page.enqueue_in_procrastinate("killed"))
        wait_for(lambda: recipe.taken["killed"], "the request")
        recipe.kill(worker)
        asyncio.run(time_passes())
        recipe.run(*command)
        for order in ENDS:
            asyncio.run(page.enqueue_in_procrastinate(order))
        check(recipe, killed=Phase.HELD)


SITE = """
from recipe_django_post_office import *

ANYMAIL = {**ANYMAIL, "POSTMARK_API_URL": %(server)r}
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "sends.sqlite3"}}
SECRET_KEY = %(secret)r
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]
USE_TZ = True
"""
FILL = """
from recipe_django_post_office import queue_receipt
from django.core.management import call_command
call_command("migrate", verbosity=0)
for order in %(orders)r:
    queue_receipt(order, order + "@example.com")
call_command("send_queued_mail", lockfile="post_office")
"""
CRON = """
import time
from recipe_django_post_office import set_times
from django.core.management import call_command
while True:
    set_times()
    call_command("send_queued_mail", lockfile="post_office")
    time.sleep(0.1)
"""


def test_django_post_office(tmp_path: Path) -> None:
    """The batch is killed while the server has one of its requests: it is sent again as a whole, and nothing twice."""
    pytest.importorskip("post_office")
    with Recipe("django-post-office", tmp_path, {}) as recipe:
        site = SITE % {"server": recipe.server.url("/"), "secret": SECRET}
        (tmp_path / "recipe_site.py").write_text(site)
        recipe.ledger = f"sqlite:///{tmp_path}/sends.sqlite3.retrypolicy"
        fill = FILL % {"orders": ["killed", *ENDS]}
        worker = recipe.run("django", "shell", "-c", fill, DJANGO_SETTINGS_MODULE="recipe_site")
        wait_for(lambda: recipe.taken["killed"] and recipe.stands_at(**ENDS | {"busy": Phase.CLAIMED}), "the requests")
        recipe.kill(worker)
        recipe.run("django", "shell", "-c", CRON, DJANGO_SETTINGS_MODULE="recipe_site")
        check(recipe, refusals=2, killed=Phase.HELD)  # once in either batch
