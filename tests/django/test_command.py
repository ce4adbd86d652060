"""`manage.py retrypolicy`, on a ledger with real sends in it."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import pytest
from anymail.exceptions import AnymailAPIError
from django.core.management import CommandError, call_command
from django.test import override_settings

from retrypolicy.clock import VirtualClock
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.guard.ledger import Take
from retrypolicy.testing import Close, FaultServer
from tests.anymail.sending import mail, ok, send

pytestmark = pytest.mark.usefixtures("project")


def run(*arguments: str) -> str:
    out = io.StringIO()
    call_command("retrypolicy", *arguments, stdout=out, no_color=True)
    return out.getvalue()


def held(name: str, key: str, **attributes: Any) -> None:
    with FaultServer([Close("request")]) as server, pytest.raises(AnymailAPIError):
        send(name, server, mail(idempotency_key=key, **attributes))


def digest(ledger: MemoryLedger, label: str) -> str:
    return next(record.key.hex() for record in ledger.records() if record.label == label)


def test_status_lists_what_is_held(ledger: MemoryLedger) -> None:
    held("postmark", "receipt/42", retry_label="order 42")
    with FaultServer([ok("postmark")]) as server:
        send("postmark", server, mail(idempotency_key="receipt/43", retry_label="order 43"))
    out = run("status")
    assert "held 1" in out
    assert "done 1" in out
    assert "order 42" in out
    assert "order 43" not in out
    assert "receipt/42" not in out
    found = json.loads(run("status", "--json"))
    assert found["phases"]["held"] == 1
    assert [record["label"] for record in found["held"]] == ["order 42"]
    assert json.loads(run("status", "--json", "--provider", "resend"))["held"] == []


@pytest.mark.parametrize("by", ["digest", "key", "label", "all"])
@pytest.mark.parametrize("verdict", ["applied", "not_applied"])
def test_resolve(verdict: str, by: str, ledger: MemoryLedger) -> None:
    held("postmark", "receipt/42", retry_label="order 42")
    chosen = {
        "digest": [digest(ledger, "order 42")[:8]],
        "key": ["--key", "receipt/42"],
        "label": ["--label", "42"],
        "all": ["--all"],
    }[by]
    assert "held" in run("resolve", verdict, *chosen, "--dry-run")
    assert ledger.counts() == {Phase.HELD: 1}
    run("resolve", verdict, *chosen, "--by", "ann")
    assert ledger.counts() == {Phase.DONE if verdict == "applied" else Phase.FAILED: 1}
    (record,) = ledger.records()
    assert record.result is not None
    assert record.result["by"] == "ann"
    with FaultServer([ok("postmark")]) as server:
        if verdict == "not_applied":
            send("postmark", server, mail(idempotency_key="receipt/42"))
        assert server.complete == (verdict == "not_applied")


def test_resolve_says_what_it_did_not_do(ledger: MemoryLedger) -> None:
    with pytest.raises(CommandError, match="which"):
        run("resolve", "applied")
    with pytest.raises(CommandError, match="no record of the key"):
        run("resolve", "applied", "--key", "receipt/42")
    with pytest.raises(CommandError, match="no such record"):
        run("resolve", "applied", "abcdef")
    assert run("resolve", "applied", "--all") == "nothing to do\n"
    with FaultServer([ok("postmark")]) as server:
        send("postmark", server, mail(idempotency_key="receipt/42"))
    with pytest.raises(CommandError, match="1 of 1 not changed"):
        run("resolve", "not_applied", "--key", "receipt/42")
    assert ledger.counts() == {Phase.DONE: 1}


def test_no_event_for_long_enough(project: dict[str, Any]) -> None:
    clock = VirtualClock()
    ledger = project["LEDGER"] = MemoryLedger(clock=clock)
    project["RELEASE_AFTER"] = {"postmark": 30}
    held("postmark", "receipt/42")
    held("mandrill", "receipt/43")
    assert run("resolve", "not_applied", "--without-event") == "nothing to do\n"
    clock.advance(31 * 60)
    run("resolve", "not_applied", "--without-event")
    assert ledger.counts() == {Phase.FAILED: 1, Phase.HELD: 1}
    with pytest.raises(CommandError, match="use not_applied"):
        run("resolve", "applied", "--without-event")


def test_release_takes_a_key_from_a_dead_owner(ledger: MemoryLedger) -> None:
    ledger.arm(Take(key=b"k" * 32, owner=b"o", token=b"t", fingerprint=b"f", lease=3600.0))
    run("release", "--all")
    assert ledger.counts() == {Phase.HELD: 1}


def test_purge(project: dict[str, Any]) -> None:
    clock = VirtualClock()
    ledger = project["LEDGER"] = MemoryLedger(clock=clock)
    ledger.done(b"k" * 32, {"status": 200})
    assert run("purge") == "0 expired record(s) deleted\n"
    clock.advance(30 * 86400)
    ledger.done(b"l" * 32, {"status": 200})
    assert run("purge") in ("1 expired record(s) deleted\n", "0 expired record(s) deleted\n")
    assert ledger.counts() == {Phase.DONE: 1}


def test_doctor(project: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from retrypolicy.guard import SQLiteLedger

    with contextlib.closing(SQLiteLedger(tmp_path / "sends.db")) as project["LEDGER"]:
        out = run("doctor")
        assert "mode      enforce" in out
        assert "ledger    SQLiteLedger" in out
        assert "held      0" in out
    project["LEDGER"] = None
    assert "ledger    none" in run("doctor")
    monkeypatch.setenv("RETRYPOLICY_MODE", "observe")
    with pytest.raises(CommandError, match="1 thing"):
        run("doctor")
    monkeypatch.delenv("RETRYPOLICY_MODE")
    project["POLICY"] = "none"
    with pytest.raises(CommandError, match="1 thing"):
        run("doctor")


def test_without_a_ledger_it_says_so(project: dict[str, Any]) -> None:
    project["LEDGER"] = None
    with pytest.raises(CommandError, match="there is no ledger"):
        run("status")


def test_sendtestemail_works(monkeypatch: pytest.MonkeyPatch) -> None:
    import django

    with FaultServer([ok("resend")]) as server:
        options = {"api_key": "k", "api_url": server.url("/")}
        backend = "retrypolicy.anymail.backends.resend.EmailBackend"
        if django.VERSION >= (6, 1):
            changed = override_settings(MAILERS={"default": {"BACKEND": backend, "OPTIONS": options}})
        else:
            changed = override_settings(
                EMAIL_BACKEND=backend, ANYMAIL={f"RESEND_{name.upper()}": value for name, value in options.items()}
            )
        with changed:
            call_command("sendtestemail", "ann@example.com")
        assert server.complete == 1
