"""Nothing secret is written down: API keys, addresses, subjects and bodies, whatever the provider and the outcome."""

from __future__ import annotations

import io
import logging
import pickle
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from anymail.exceptions import AnymailAPIError
from attrs import define, field
from django.core.management import call_command
from requests.auth import _basic_auth_str

from retrypolicy import operation, report
from retrypolicy.django.listing import page
from retrypolicy.errors import KeyReused, RetryPolicyError
from retrypolicy.guard import SQLiteLedger
from retrypolicy.requests import RetryAdapter
from retrypolicy.testing import Answer, Close, FaultServer
from tests.anymail.conftest import AT_ONCE
from tests.anymail.sending import OK, SECRET, mail, ok, send

pytestmark = pytest.mark.filterwarnings("ignore:.*SendGrid.*")

WORDS = [SECRET, "secret subject", "secret body", "ann@example.com", "bob@example.com", "shop@example.com", "attached"]
ANSWER = Answer(400, body=b'{"message": "ann@example.com: A secret subject", "key": "%s"}' % SECRET.encode())
OUTCOMES: dict[str, Callable[[str], Any]] = {
    "done": ok,
    "held": lambda name: Close("request"),
    "refused": lambda name: ANSWER,
    "server error": lambda name: Answer(500, body=ANSWER.body),
}


@define
class Ear:
    """Hears every event."""

    heard: list[Any] = field(factory=list)

    def on_event(self, event: Any) -> None:
        self.heard.append(event)


@pytest.fixture
def ear(monkeypatch: pytest.MonkeyPatch) -> Ear:
    """Listens to all engines."""
    ear = Ear()
    made = RetryAdapter.__init__

    def listened(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **options, listeners=[ear])

    monkeypatch.setattr(RetryAdapter, "__init__", listened)
    return ear


@pytest.fixture
def file(tmp_path: Path, project: dict[str, Any]) -> Iterator[Path]:
    """A ledger in a file, without waits."""
    path = tmp_path / "sends.db"
    ledger = SQLiteLedger(path)
    project.update(LEDGER=ledger, POLICY=AT_ONCE)
    yield path
    ledger.close()


def written(path: Path) -> str:
    """Everything in the file: its rows, and its raw bytes, what was deleted included."""
    rows = []
    with sqlite3.connect(path) as connection:
        for row in connection.execute("SELECT * FROM sends"):
            rows += [value.hex() + repr(value) if isinstance(value, bytes) else str(value) for value in row]
    connection.close()
    raw = b"".join(part.read_bytes() for part in path.parent.iterdir())
    return "\n".join(rows) + raw.decode("latin-1")


def message(**attributes: Any) -> Any:
    made = mail(to=["Ann <ann@example.com>"], cc=["bob@example.com"], **attributes)
    made.attach("attached.txt", b"attached", "text/plain")
    return made


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("name", OK)
def test_nothing_secret_is_written(
    name: str, outcome: str, file: Path, project: dict[str, Any], ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="retrypolicy")
    told: list[str] = []
    options = {"sender_domain": "example.com"} if name == "mailgun" else {}
    with FaultServer([OUTCOMES[outcome](name)]) as server:
        for key in ("welcome/ann@example.com", None):
            for _ in range(2):
                sent = message(retry_label="a label", **({} if key is None else {"idempotency_key": key}))
                try:
                    send(name, server, sent, **options)
                except AnymailAPIError as error:
                    told += getattr(error, "__notes__", [])
                    told.append(repr(report(error)))
                    if isinstance(error, RetryPolicyError):
                        told.append(repr(pickle.dumps(error)))
                told.append(repr(report(sent.anymail_status)))
        assert server.complete >= 2
    out = io.StringIO()
    call_command("retrypolicy", "status", stdout=out)
    call_command("retrypolicy", "resolve", "applied", "--all", "--by", "me", stdout=out)
    shown = [repr((row.record, row.known)) for row in page(project["LEDGER"], {"phase": "all"}).rows]
    texts = {
        "ledger": written(file),
        "log": "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("retrypolicy")),
        "events": repr(ear.heard),
        "command": out.getvalue(),
        "admin": "\n".join(shown),
        "errors": "\n".join(told),
    }
    assert ear.heard
    assert "a label" in texts["ledger"]
    words = [*WORDS, _basic_auth_str("api", SECRET)]
    for place, text in texts.items():
        assert [word for word in words if word.lower() in text.lower()] == [], place


def test_a_refusal_of_ours_carries_no_message(file: Path) -> None:
    with FaultServer([ok("resend")]) as server, operation(key="receipt/42"):
        send("resend", server, message())
        with pytest.raises(KeyReused) as caught:
            send("resend", server, message(subject="another"))
    pickled = pickle.dumps(caught.value)
    assert not [word for word in WORDS if word.encode() in pickled]
    assert isinstance(pickle.loads(pickled), type(caught.value))
