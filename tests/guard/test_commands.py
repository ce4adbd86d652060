"""`retrypolicy ledger` and `retrypolicy doctor`, on real stores, as a person at a terminal uses them."""

from __future__ import annotations

import io
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from retrypolicy import Engine, operation
from retrypolicy.cli import main
from retrypolicy.errors import AlreadyDone, SendHeld
from retrypolicy.guard import Phase, open_ledger
from retrypolicy.guard.key import Secret, key_digest
from retrypolicy.guard.ledger import Ledger, Take, Taken

from .servers import Valkey, new_valkey, postgres, valkey

__all__ = ["new_valkey", "postgres", "valkey"]

SECRET = "a secret for tests"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRYPOLICY_SECRET", SECRET)


@pytest.fixture(params=["sqlite", "valkey", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path / 'sends.db'}"
        open_ledger(made).close()
        return made
    server: Any = request.getfixturevalue(request.param)
    if request.param == "valkey":
        with server.client() as client:
            client.flushall()
        return str(server.url)
    return f"{server.url}&table=t{os.urandom(6).hex()}"


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A SQLite ledger: enough where the store makes no difference."""
    made = f"sqlite:///{tmp_path / 'sends.db'}"
    open_ledger(made).close()
    return made


@pytest.fixture
def ledger(file: str) -> Iterator[Ledger]:
    with closing(open_ledger(file)) as opened:
        yield opened


def put(ledger: Ledger, key: str, phase: Phase, **more: Any) -> bytes:
    """A record in that phase, made as a sender makes it."""
    digest = key_digest(Secret.of(SECRET), key)
    given: dict[str, Any] = {"lease": 300.0, "label": f"label of {key}", "provider": "mailgun"}
    take = Take(key=digest, owner=b"o" * 16, token=b"t" * 8, fingerprint=b"f" * 32, **(given | more))
    taken = ledger.claim(take) if phase is Phase.CLAIMED else ledger.arm(take)
    assert isinstance(taken, Taken)
    if phase is Phase.HELD:
        assert ledger.unknown(digest, b"o" * 16, taken.fence)
    elif phase is Phase.DONE:
        assert ledger.done(digest, {"status": 200})
    elif phase is Phase.FAILED:
        assert ledger.reject(digest, b"o" * 16, taken.fence)
    return digest


def phase_of(ledger: Ledger, digest: bytes) -> Phase | None:
    record = ledger.read(digest)[0]
    return None if record is None else record.phase


def run(*words: str) -> int:
    return main(["ledger", *words])


def rows(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# -- list and show -------------------------------------------------------------------------------------------------


def test_the_two_commands_that_the_demo_prints(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(open_ledger(url)) as ledger:
        held = put(ledger, "held", Phase.HELD)
        put(ledger, "done", Phase.DONE)
        assert run("list", "--ledger", url, "--phase", "held") == 0
        out = capsys.readouterr().out
        assert held.hex()[:12] in out
        assert "label of held" in out
        assert "label of done" not in out
        assert run("resolve", "--ledger", url, held.hex()[:12], "not_applied") == 0
        assert phase_of(ledger, held) is Phase.FAILED
        assert run("list", "--ledger", url, "--phase", "held") == 1
        assert capsys.readouterr().out.endswith("no such records\n")


def test_a_digest_needs_no_secret(file: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = put(ledger, "k", Phase.HELD)
    monkeypatch.delenv("RETRYPOLICY_SECRET")
    assert run("resolve", "--ledger", file, digest.hex(), "applied") == 0
    assert phase_of(ledger, digest) is Phase.DONE


def test_an_armed_record_whose_owner_died_is_listed_and_resolved_as_held(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(open_ledger(url)) as ledger:
        dead = put(ledger, "dead", Phase.ARMED, lease=-1.0)
        alive = put(ledger, "alive", Phase.ARMED)
        assert run("list", "--ledger", url, "--phase", "held", "--json") == 0
        assert [row["key"] for row in rows(capsys)] == [dead.hex()]
        assert run("list", "--ledger", url, "--phase", "armed", "--json") == 0
        assert [row["key"] for row in rows(capsys)] == [alive.hex()]
        assert run("resolve", "--ledger", url, dead.hex()[:12], "applied") == 0
        assert phase_of(ledger, dead) is Phase.DONE
        assert run("resolve", "--ledger", url, alive.hex()[:12], "applied") == 1
        assert phase_of(ledger, alive) is Phase.ARMED


def test_filters(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(open_ledger(url)) as ledger:
        put(ledger, "a", Phase.HELD, provider="brevo", label="order 1")
        put(ledger, "b", Phase.HELD, provider="mailgun", label="order 2")
        put(ledger, "c", Phase.FAILED, provider="mailgun", label="invoice 3")

    def labels(*words: str) -> set[str]:
        run("list", "--ledger", url, "--json", *words)
        return {row["label"] for row in rows(capsys)}

    assert labels() == {"order 1", "order 2", "invoice 3"}
    assert labels("--provider", "mailgun") == {"order 2", "invoice 3"}
    assert labels("--label", "order") == {"order 1", "order 2"}
    assert labels("--label", "") == {"order 1", "order 2", "invoice 3"}
    assert labels("--label", "order%") == labels("--label", "order_1") == labels("--label", "\\") == set()
    assert labels("--phase", "held", "--phase", "failed") == {"order 1", "order 2", "invoice 3"}
    assert labels("--age", "0s") == {"order 1", "order 2", "invoice 3"}
    assert labels("--age", "1h") == set()
    assert len(labels("--limit", "2")) == 2


def test_what_is_listed_names_neither_owner_nor_content(
    file: str, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    put(ledger, "k", Phase.HELD)
    run("list", "--ledger", file, "--json")
    (row,) = rows(capsys)
    assert set(row) == {
        "key", "phase", "tainted", "provider", "label", "attempts", "first_seen", "first_armed", "last_armed", "lease",
        "not_before", "expires", "result",
    }  # fmt: skip


def test_a_label_cannot_command_the_terminal_nor_forge_a_line_of_the_audit(
    file: str, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    put(ledger, "k", Phase.HELD, label="\x1b[2Jgone\nforged line")
    run("list", "--ledger", file)
    run("resolve", "--ledger", file, "--all", "applied")
    out, audit = capsys.readouterr()
    assert "\x1b" not in out + audit
    assert "\nforged" not in out + audit
    assert "forged line" in audit


def test_a_label_that_the_terminal_cannot_show(file: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    put(ledger, "k", Phase.HELD, label="Ångström 42")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["ledger", "list", "--ledger", file]) == 0
    assert rb"\xc5ngstr\xf6m 42" in terminal.buffer.getvalue()


def test_show_by_key_and_by_digest(file: str, ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    digest = put(ledger, "receipt/42", Phase.DONE)
    assert run("show", "--ledger", file, "--key", "receipt/42", "--json") == 0
    assert run("show", "--ledger", file, digest.hex()[:8], "--json") == 0
    by_key, by_digest = rows(capsys)
    assert by_key == by_digest
    assert by_key["result"] == {"status": 200}
    assert run("show", "--ledger", file, digest.hex()) == 0
    assert "phase:        done\n" in capsys.readouterr().out


def test_a_key_from_before_a_rotation_of_the_secret_is_found(
    file: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(ledger, "receipt/42", Phase.HELD)
    monkeypatch.setenv("RETRYPOLICY_SECRET", f"new, {SECRET}")
    assert run("resolve", "--ledger", file, "--key", "receipt/42", "applied") == 0


# -- resolve, release, purge, stats -----------------------------------------------------------------------------------


def test_what_was_resolved_is_what_the_next_call_meets(file: str, ledger: Ledger) -> None:
    """The whole way round: an unknown outcome, a person's word, and what the application gets then."""
    engine = Engine(ledger=ledger, secret=SECRET)

    def fails() -> str:
        raise OSError("lost")

    for key in ("one", "two"):
        with pytest.raises(OSError, match="lost"), operation(key=key):
            engine.run(fails)
        with pytest.raises(SendHeld), operation(key=key):
            engine.run(fails)
    assert run("resolve", "--ledger", file, "--key", "one", "applied", "--by", "alice") == 0
    assert run("resolve", "--ledger", file, "--key", "two", "not_applied") == 0
    with pytest.raises(AlreadyDone) as caught, operation(key="one"):
        engine.run(fails)
    assert caught.value.result is not None
    assert (caught.value.result["how"], caught.value.result["by"]) == ("resolved", "alice")
    with pytest.raises(OSError, match="lost"), operation(key="two"):
        engine.run(fails)


def test_every_change_is_audited(file: str, ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    held, armed = put(ledger, "held", Phase.HELD), put(ledger, "armed", Phase.ARMED)
    with caplog.at_level(logging.INFO, logger="retrypolicy.audit"):
        run("resolve", "--ledger", file, held.hex(), "applied", "--by", "alice")
        run("resolve", "--ledger", file, held.hex(), "applied", "--by", "bob")
        run("release", "--ledger", file, armed.hex(), "--by", "carol")
        run("purge", "--ledger", file, "--by", "dave")
    lines = [record.getMessage() for record in caplog.records if record.name == "retrypolicy.audit"]
    assert lines == [
        f"resolve applied: key {held.hex()[:12]} [label of held], by alice: done, was held",
        f"resolve applied: key {held.hex()[:12]} [label of held], by bob: not done, it is done, not held",
        f"release: key {armed.hex()[:12]} [label of armed], by carol: held, was armed",
        "purge: 0 expired record(s) deleted, by dave",
    ]
    record = ledger.read(held)[0]
    assert record is not None
    assert record.result is not None
    assert (record.result["how"], record.result["by"]) == ("resolved", "alice")


def test_audit_lines_go_to_standard_error(file: str, ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    digest = put(ledger, "k", Phase.HELD)
    run("resolve", "--ledger", file, digest.hex(), "applied", "--json")
    printed = capsys.readouterr()
    assert json.loads(printed.out)["after"] == "done"
    assert "retrypolicy.audit resolve applied" in printed.err


def test_bulk_with_a_dry_run_first(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(open_ledger(url)) as ledger:
        mine = [put(ledger, f"m{n}", Phase.HELD, provider="mailgun") for n in range(3)]
        other = put(ledger, "o", Phase.HELD, provider="brevo")
        assert run("resolve", "--ledger", url, "--provider", "mailgun", "not_applied", "--dry-run", "--json") == 0
        said = rows(capsys)
        assert {row["key"] for row in said} == {digest.hex() for digest in mine}
        assert all(row["dry_run"] and row["after"] == "failed" for row in said)
        assert {phase_of(ledger, digest) for digest in mine} == {Phase.HELD}
        assert run("resolve", "--ledger", url, "--provider", "mailgun", "not_applied") == 0
        assert {phase_of(ledger, digest) for digest in mine} == {Phase.FAILED}
        assert phase_of(ledger, other) is Phase.HELD


@pytest.mark.parametrize("words", [[], ["--all", "abcdef"], ["--key", "k", "--provider", "p"]])
def test_bulk_must_be_said_and_not_mixed_with_names(
    words: list[str], file: str, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = put(ledger, "k", Phase.HELD)
    assert run("resolve", "--ledger", file, *words, "applied") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert phase_of(ledger, digest) is Phase.HELD


def test_release_gives_a_claimed_key_free_and_makes_an_armed_one_held(url: str) -> None:
    with closing(open_ledger(url)) as ledger:
        waiting = put(ledger, "w", Phase.CLAIMED, not_before=ledger.read(bytes(32))[1] + 3600)
        armed = put(ledger, "a", Phase.ARMED)
        dead = put(ledger, "d", Phase.ARMED, lease=-1.0)
        done = put(ledger, "e", Phase.DONE)
        assert run("release", "--ledger", url, "--all", "--dry-run") == 0
        assert phase_of(ledger, armed) is Phase.ARMED
        assert run("release", "--ledger", url, waiting.hex(), armed.hex(), dead.hex(), done.hex()) == 1
        assert [phase_of(ledger, d) for d in (armed, dead, done)] == [Phase.HELD, Phase.HELD, Phase.DONE]
        take = Take(key=waiting, owner=b"n" * 16, token=b"u" * 8, fingerprint=b"f" * 32, lease=10.0)
        assert isinstance(ledger.arm(take), Taken)
        # The owner that was taken for dead is not: its bad news is not believed any more, its good news is.
        assert not ledger.reject(armed, b"o" * 16, 1)
        assert ledger.done(armed, {"status": 200})


def test_purge_deletes_what_is_past_its_retention_and_never_what_is_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sends.db"
    url = f"sqlite:///{path}"
    with closing(open_ledger(url, retention=0.001)) as ledger:
        for number in range(5):
            put(ledger, f"old {number}", Phase.DONE)
        put(ledger, "held", Phase.HELD)
        put(ledger, "armed", Phase.ARMED)
    with closing(open_ledger(url)) as ledger:
        put(ledger, "new", Phase.DONE)
    assert run("purge", "--ledger", url, "--dry-run") == 0
    assert capsys.readouterr() == ("5 expired record(s) would be deleted\n", "")  # nor an audit line
    assert run("purge", "--ledger", url, "--json", "--dry-run") == 0
    assert rows(capsys) == [{"expired": 5, "deleted": 0, "dry_run": True}]
    assert run("purge", "--ledger", url, "--json") == 0
    assert rows(capsys) == [{"expired": 5, "deleted": 5, "dry_run": False}]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM sends").fetchone() == (3,)


def test_stats(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(open_ledger(url)) as ledger:
        put(ledger, "h", Phase.HELD, provider="brevo")
        put(ledger, "d", Phase.ARMED, lease=-1.0)
        put(ledger, "a", Phase.ARMED)
        put(ledger, "x", Phase.DONE)
    assert run("stats", "--ledger", url, "--json") == 0
    (found,) = rows(capsys)
    assert found["phases"] == {"claimed": 0, "armed": 1, "done": 1, "failed": 0, "held": 2}
    assert found["held_by_provider"] == {"brevo": 1, "mailgun": 1}
    assert 0 <= found["oldest_held_seconds"] < 60
    assert run("stats", "--ledger", url) == 0
    assert "held     2\n" in capsys.readouterr().out


# -- bad input ----------------------------------------------------------------------------------------------------


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")


def _newer(path: Path) -> None:
    open_ledger(f"sqlite:///{path}").close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


BAD: dict[str, tuple[Callable[[Path], None] | None, str, str]] = {
    "no scheme": (None, "sends.db", "without a scheme"),
    "unknown kind": (None, "mysql://host/db", "not a known kind"),
    "no path": (None, "sqlite://", "must be sqlite:///"),
    "no such file": (None, "sqlite:///{path}", "no such file"),
    "a text": (lambda path: path.write_text("not a database " * 100) and None, "sqlite:///{path}", "not a ledger"),
    "another database": (_foreign, "sqlite:///{path}", "not a ledger"),
    "newer": (_newer, "sqlite:///{path}", "version 99"),
    "a folder": (Path.mkdir, "sqlite:///{path}", "not a file"),
    "nobody there": (None, "redis://127.0.0.1:1/0", "ledger"),
    "nobody there either": (None, "postgresql://127.0.0.1:1/x?connect_timeout=2", "ledger"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("command", ["ledger", "doctor"])
def test_a_bad_ledger_is_one_line(case: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, url, words = BAD[case]
    path = tmp_path / "sends.db"
    if make is not None:
        make(path)
    before = sorted(os.listdir(tmp_path))
    url = url.format(path=path)
    if command == "ledger":
        assert run("list", "--ledger", url) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("retrypolicy: ")
        assert printed.err.count("\n") == 1
        assert words in printed.err
    else:
        assert main(["doctor", "--ledger", url, "--json"]) == 1
        found = {row["what"]: row for row in rows(capsys)}
        assert found["reachable"]["state"] == "bad"
        assert words in found["reachable"]["text"]
    if make is None:
        assert sorted(os.listdir(tmp_path)) == before


def test_no_ledger_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 2
    assert "RETRYPOLICY_LEDGER" in capsys.readouterr().err


def test_the_environment_names_the_ledger(file: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    put(ledger, "k", Phase.HELD)
    monkeypatch.setenv("RETRYPOLICY_LEDGER", file)
    assert run("list") == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "abc"], "at least 6"),
        (["show", "not-hex"], "not a digest"),
        (["show", "abcdef"], "no such record"),
        (["show", "--key", "unheard of"], "no record of that key"),
        (["show", "--key", ""], "empty key"),
        (["show", "--key", "a\nb"], "control characters"),
        (["show"], "no record is named"),
    ],
)
def test_a_bad_name_is_one_line(words: list[str], said: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words, "--ledger", file) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


def test_two_records_that_begin_alike_must_be_told_apart(
    file: str, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    for last in b"ab":
        take = Take(key=b"\xab" * 31 + bytes([last]), owner=b"o", token=b"t", fingerprint=b"f", lease=10.0)
        ledger.arm(take)
    assert run("show", "--ledger", file, "abababab") == 2
    assert "2 records begin so" in capsys.readouterr().err


@pytest.mark.parametrize("age", ["soon", "1x", "-1h"])
def test_a_bad_age_is_said(age: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("list", "--ledger", file, f"--age={age}")
    assert caught.value.code == 2
    assert "is not an age" in capsys.readouterr().err


# -- doctor ----------------------------------------------------------------------------------------------------


def states(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    return {row["what"]: row["state"] for row in rows(capsys)}


def test_the_doctor_finds_nothing_on_a_good_store(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--ledger", url, "--json"])
    found = states(capsys)
    durable = found.pop("durable")
    assert found == {
        "mode": "good", "secret": "good", "reachable": "good", "shared": "good", "clock": "good", "held": "good"
    }  # fmt: skip
    assert code == (0 if durable == "good" else 1)  # a file system in memory is not durable, and tests may run there


def test_the_doctor_says_what_a_memory_ledger_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--ledger", "memory:doctor"]) == 1
    out = capsys.readouterr().out
    assert "bad      durable:" in out
    assert "warning  shared:" in out


def test_the_doctor_refuses_a_valkey_that_forgets(
    new_valkey: Callable[..., Valkey],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = new_valkey(appendonly="no")
    assert main(["doctor", "--ledger", server.url, "--json"]) == 1
    found = rows(capsys)
    assert any(row["state"] == "bad" and "appendonly" in row["text"].lower() for row in found)


def test_the_doctor_sees_mode_secret_and_held_sends(
    file: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(ledger, "k", Phase.HELD)
    monkeypatch.setenv("RETRYPOLICY_MODE", "observe")
    monkeypatch.delenv("RETRYPOLICY_SECRET")
    main(["doctor", "--ledger", file, "--json"])
    found = states(capsys)
    assert (found["mode"], found["secret"], found["held"]) == ("warning", "warning", "warning")
    monkeypatch.setenv("RETRYPOLICY_MODE", "sometimes")
    monkeypatch.setenv("RETRYPOLICY_SECRET", "a,,b")
    assert main(["doctor", "--ledger", file, "--json"]) == 1
    found = states(capsys)
    assert (found["mode"], found["secret"]) == ("bad", "bad")


def test_machines_can_compare_their_secrets_without_showing_them(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def secret_line() -> str:
        main(["doctor", "--ledger", file, "--json"])
        return str(next(row["text"] for row in rows(capsys) if row["what"] == "secret"))

    one = secret_line()
    assert secret_line() == one
    assert SECRET not in one
    monkeypatch.setenv("RETRYPOLICY_SECRET", "another")
    assert secret_line() != one
    monkeypatch.setenv("RETRYPOLICY_SECRET", f"{SECRET},older")
    assert secret_line().startswith(one)


@pytest.mark.parametrize(("skew", "side"), [(100.0, "behind"), (-100.0, "ahead of")])
def test_a_clock_that_is_wrong(skew: float, side: str, file: str) -> None:
    from retrypolicy.clock import SystemClock
    from retrypolicy.guard.doctor import examine

    class Wrong(SystemClock):
        def now(self) -> float:
            return super().now() - skew

    (found,) = [f for f in examine(file, Wrong()) if f.what == "clock"]
    assert found.state == "warning"
    assert side in found.text
