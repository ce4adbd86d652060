"""The admin page in a real, headless Chromium; skipped where there is none.

`nox -s screenshots` runs this with SCREENSHOTS set, and writes the pictures of the docs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.db import connections
from django.test import Client, override_settings
from django.test.testcases import LiveServerThread
from django.urls import path

from retrypolicy.clock import VirtualClock
from retrypolicy.django import outbox
from retrypolicy.django.models import OutboxMessage
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.guard.ledger import Take, Taken
from retrypolicy.testing import Answer, Close, FaultServer
from tests.anymail.sending import JSON, mail, ok

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.usefixtures("database"),
]

URLS = ModuleType("urls")
URLS.urlpatterns = [path("admin/", admin.site.urls)]  # type: ignore[attr-defined]


class Static(StaticFilesHandler):
    """Serves the files of the installed apps."""

    def serve(self, request: Any) -> Any:
        from django.contrib.staticfiles.views import serve

        return serve(request, self.file_path(request.path), insecure=True)


@pytest.fixture
def many(project: dict[str, Any]) -> MemoryLedger:
    """A ledger on a bad day."""
    clock = VirtualClock(1_800_000_000.0)
    ledger: MemoryLedger = MemoryLedger(clock=clock)
    project["LEDGER"] = ledger
    for number in range(8):
        clock.advance(47.0)
        provider = ("postmark", "mailgun", "resend")[number % 3]
        key = hashlib.sha256(bytes([number])).digest()
        take = Take(
            key=key, owner=b"o", token=b"t", fingerprint=b"f", lease=90.0, attempts=1 + number % 2,
            label=f"receipt for order {1041 + number}", provider=provider,
        )  # fmt: skip
        taken = ledger.arm(take)
        assert isinstance(taken, Taken)
        if number < 5:
            ledger.unknown(key, b"o", taken.fence)
        elif number < 7:
            ledger.done(key, {"status": 200, "id": "49a3999c-0ce1"})
    return ledger


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a running site."""
    connection = connections["default"]
    connection.inc_thread_sharing()
    with override_settings(ROOT_URLCONF=URLS, ALLOWED_HOSTS=["*"], STATIC_URL="/static/"):
        thread = LiveServerThread("127.0.0.1", Static, connections_override={"default": connection}, port=0)
        thread.daemon = True
        thread.start()
        thread.is_ready.wait()
        yield f"http://127.0.0.1:{thread.port}"
        thread.terminate()
    connection.dec_thread_sharing()


@pytest.fixture
def page(site: str) -> Iterator[Any]:
    """A browser's page, logged in."""
    playwright = pytest.importorskip("playwright.sync_api")
    user, _ = User.objects.get_or_create(username="ann", is_staff=True, is_superuser=True)
    client = Client()
    client.force_login(user)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1400, "height": 560})
        context.add_cookies([{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": site}])
        yield context.new_page()
        browser.close()


def picture(page: Any, name: str) -> None:
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_held_sends_are_resolved_in_the_browser(
    page: Any, site: str, many: MemoryLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")  # playwright has a loop of its own in this thread
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("response", lambda found: found.status >= 400 and "favicon" not in found.url and problems.append(found.url))
    page.goto(f"{site}/admin/retrypolicy/send/")
    assert page.locator("#result_list tbody tr").count() == 5
    picture(page, "admin-held")

    page.check("#sends-all")
    assert page.locator("input[name=send]:checked").count() == 5
    page.locator("input[name=send]").nth(0).uncheck()
    page.select_option("#sends-action", label="It arrived")
    page.click("button:text-is('Go')")
    assert "Is this true of all 4?" in page.inner_text("#content-main")
    picture(page, "admin-confirm")
    page.click("text=Yes: it arrived")
    assert "4 send(s) resolved" in page.inner_text(".messagelist")
    assert page.locator("#result_list tbody tr").count() == 1
    assert many.counts() == {Phase.HELD: 1, Phase.DONE: 6, Phase.ARMED: 1}

    page.click("a:text-is('All')")
    page.fill("#sends-q", "1041")
    page.click("button:text-is('Filter')")
    assert page.locator("#result_list tbody tr").count() == 1
    page.click("text=receipt for order 1041")
    assert "was held, is done" in page.inner_text("#content-main")
    picture(page, "admin-record")
    assert problems == []


@pytest.fixture
def three(project: dict[str, Any]) -> Iterator[FaultServer]:
    """Messages in the outbox that a provider held, refused and held. Then it takes everything."""
    refused = Answer(422, headers=JSON, body=b'{"ErrorCode": 300}')
    with FaultServer([Close("request"), refused, Close("request"), ok("postmark")]) as server:
        anymail = {"POSTMARK_SERVER_TOKEN": "t", "POSTMARK_API_URL": server.url("/")}
        with override_settings(EMAIL_BACKEND="retrypolicy.anymail.backends.postmark.EmailBackend", ANYMAIL=anymail):
            for number in (1041, 1042, 1043):
                outbox.put(mail(retry_label=f"receipt for order {number}"), key=f"receipt/{number}")
            yield server
    OutboxMessage.objects.all().delete()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_send_again_in_the_browser(three: FaultServer, page: Any, site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    page.set_viewport_size({"width": 1440, "height": 560})
    page.goto(f"{site}/admin/retrypolicy/outboxmessage/")
    assert page.locator("#result_list tbody tr").count() == 3
    picture(page, "admin-outbox")
    page.check("tr:has-text('1043') input[name=_selected_action]")
    page.select_option("select[name=action]", label="Send again")
    page.click("button[name=index]")
    assert "Are all 1 to be sent again?" in page.inner_text("#content-main")
    assert three.complete == 3
    page.click("text=Yes: send again")
    assert "1 message(s) sent again." in page.inner_text(".messagelist")
    assert page.locator("#result_list tbody tr").count() == 2
    assert three.complete == 4
