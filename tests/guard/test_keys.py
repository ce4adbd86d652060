"""Keys, digests and fingerprints: what names a call, and what must not change its name."""

from __future__ import annotations

import hmac
import json
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st
from requests.models import RequestEncodingMixin

from retrypolicy import Constant, Engine, RetryPolicy, operation
from retrypolicy.clock import VirtualClock
from retrypolicy.errors import AlreadyDone, ConfigurationError, KeyReused, PolicyError, SendHeld
from retrypolicy.guard import Key, Ledger, MemoryLedger, Phase, open_ledger
from retrypolicy.guard.key import Secret, content_of, find, fingerprint, key_digest
from retrypolicy.guard.ledger import Record, Refused, Take, Taken
from retrypolicy.providers import KeyPlacement, Provider
from retrypolicy.requests import mount
from retrypolicy.testing import Answer, FaultServer

from .servers import Postgres, Valkey, postgres, valkey

__all__ = ["postgres", "valkey"]

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
URL = "https://api.example.com/emails"
AT_ONCE = RetryPolicy(backoff=Constant(seconds=0))

documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)


def content(body: bytes | str | None, kind: str = JSON, left_out: Any = None, url: str = URL) -> bytes:
    return content_of("POST", url, kind, body, left_out)


# -- what goes out --------------------------------------------------------------------------------


def test_the_outgoing_key_is_the_same_with_a_new_machine_a_new_ledger_and_a_rotated_secret(tmp_path: Path) -> None:
    """Each of these is another machine's process: other host name, other ledger, other secret, other hash seed."""
    program = """
import os, socket, sys
socket.gethostname = lambda: os.environ["HOSTNAME"]
import requests
from retrypolicy import operation
from retrypolicy.providers import KeyPlacement, Provider
from retrypolicy.requests import mount
placement = KeyPlacement(header="X-Key", window=60.0, format=sys.argv[2])
session = requests.Session()
mount(session, ledger=os.environ["RETRYPOLICY_LEDGER"],
      provider=Provider(name="made-up", hosts=("127.0.0.1",), key=placement))
for how in ({"key": "receipt/42"}, {"key": "someone@example.com"}, {"scope": "job 7"}):
    with operation(**how):
        session.post(sys.argv[1], json={"amount": 1})
"""
    seen = []
    for number, form in enumerate(("text", "uuid") * 2):
        with FaultServer([Answer(200)]) as server:
            environment = os.environ | {
                "HOSTNAME": f"machine-{number}",
                "RETRYPOLICY_LEDGER": f"sqlite:///{tmp_path}/{number}.db",
                "RETRYPOLICY_SECRET": f"secret {number}, older one",
                "PYTHONHASHSEED": str(number),
                "PYTHONPATH": os.pathsep.join(sys.path),
            }
            subprocess.run([sys.executable, "-c", program, server.url("/pay"), form], env=environment, check=True)
            # The port is part of the content, so of the derived key; a machine does not choose it.
            seen.append([dict(request.headers)["X-Key"] for request in server.requests])
    for one, other in ((seen[0], seen[2]), (seen[1], seen[3])):
        assert one[:2] == other[:2]
        assert len(set(one)) == 3
    assert seen[0][0] == "receipt/42"
    assert all("@" not in key for keys in seen for key in keys)


def test_a_derived_key_is_a_function_of_scope_content_and_occurrence_alone() -> None:
    one = Key.derived("job 7", b"content", 0).value
    assert one == "b8c0a8ad810119f6008de5a869df8357"  # as it was in the first release
    assert Key.derived("job 7", b"content", 0).value == one
    others = {
        Key.derived("job 8", b"content", 0).value,
        Key.derived("job 7", b"content", 1).value,
        Key.derived("job 7", b"content!", 0).value,
        Key.derived("job 7c", b"ontent", 0).value,
    }
    assert one not in others
    assert len(others) == 4


def test_a_job_that_runs_again_gets_the_keys_it_had(tmp_path: Path) -> None:
    """Two wanted equal messages stay two; a redelivered job repeats neither."""
    ledger = MemoryLedger()
    with FaultServer([Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, ledger=ledger, secret="s")
        for run in range(2):
            with operation(scope="job 7"):
                for body in ({"to": "a"}, {"to": "b"}, {"to": "a"}):
                    if run == 0:
                        session.post(server.url(), json=body)
                    else:
                        with pytest.raises(AlreadyDone):
                            session.post(server.url(), json=body)
        assert server.complete == 3


def test_a_key_is_never_shown() -> None:
    assert repr(Key(value="receipt/42", label="order 42")) == "Key(...)"


def test_a_derived_key_has_its_label() -> None:
    assert Key.derived("job 7", b"content", 0, "order 42").label == "order 42"


# -- digests and their secret --------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "valkey", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/sends.db"
    else:
        server: Valkey | Postgres = request.getfixturevalue(request.param)
        url = server.url
        if isinstance(server, Postgres):
            url += f"&table=t{os.urandom(6).hex()}"
    with closing(open_ledger(url)) as opened:
        yield opened


def attempt(ledger: Ledger, secret: Any, key: str, fn: Any) -> Any:
    with operation(key=key):
        return Engine(AT_ONCE, ledger=ledger, secret=secret).run(fn)


def test_after_a_rotation_of_the_secret_old_records_still_count(ledger: Ledger) -> None:
    def fails() -> None:
        raise OSError("lost")

    done, held, both = (f"{name}/{os.urandom(4).hex()}" for name in ("done", "held", "both"))
    attempt(ledger, "old", done, lambda: None)
    with pytest.raises(OSError, match="lost"):
        attempt(ledger, "old", held, fails)
    for secret in (["new", "old"], ["newest", "new", "old"]):
        with pytest.raises(AlreadyDone):
            attempt(ledger, secret, done, lambda: None)
        with pytest.raises(SendHeld):
            attempt(ledger, secret, held, fails)
    # A new key is kept under the new secret, and needs the old one no more.
    attempt(ledger, ["new", "old"], both, lambda: None)
    assert ledger.read(key_digest(Secret.of("new"), both))[0] is not None
    with pytest.raises(AlreadyDone):
        attempt(ledger, "new", both, lambda: None)


def test_an_old_record_is_compared_under_its_own_secret(ledger: Ledger) -> None:
    """A rotation must not turn the same content into another one, nor another one into the same."""
    key = f"k/{os.urandom(4).hex()}"
    with FaultServer([Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, ledger=ledger, secret="old")
        with operation(key=key):
            session.post(server.url(), json={"amount": 1})
        mount(session, AT_ONCE, ledger=ledger, secret=["new", "old"])
        with pytest.raises(AlreadyDone), operation(key=key):
            session.post(server.url(), json={"amount": 1})
        with pytest.raises(KeyReused), operation(key=key):
            session.post(server.url(), json={"amount": 2})
        assert server.complete == 1


class Counting(MemoryLedger):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def arm(self, take: Take) -> Taken | Refused:
        self.calls.append("arm")
        return super().arm(take)

    def read(self, key: bytes) -> tuple[Record | None, float]:
        self.calls.append("read")
        return super().read(key)

    def done(self, key: bytes, result: Mapping[str, Any], *, provider: str = "") -> bool:
        self.calls.append("done")
        return super().done(key, result, provider=provider)


@pytest.mark.parametrize(("secret", "calls"), [("one", ["arm", "done"]), (["new", "old"], ["read", "arm", "done"])])
def test_a_rotation_costs_one_read_a_call_and_only_while_it_lasts(secret: Any, calls: list[str]) -> None:
    ledger = Counting()
    attempt(ledger, secret, "k", lambda: None)
    assert ledger.calls == calls


@given(secret=st.binary(min_size=1, max_size=200), first=st.binary(max_size=20), rest=st.lists(st.binary(max_size=100)))
def test_a_digest_is_an_hmac_of_its_parts_after_their_lengths(secret: bytes, first: bytes, rest: list[bytes]) -> None:
    """RFC 2104. What ledgers already hold depends on it, so it never changes."""
    message = b"".join(len(part).to_bytes(8, "big") + part for part in (first, *rest))
    assert Secret.of(secret).digest(first, *rest) == hmac.digest(secret, message, "sha256")


def test_keys_and_contents_are_named_apart() -> None:
    """What ledgers already hold depends on it, so it never changes."""
    secret = Secret.of("s")
    assert key_digest(secret, "é") == secret.digest(b"key", "é".encode())
    assert fingerprint(secret, b"c") == secret.digest(b"content", b"c")


def test_a_record_is_found_by_the_current_secret_or_an_older_one() -> None:
    ledger = MemoryLedger(clock=VirtualClock(100.0))
    secret = Secret.of(["newest", "new", "old"])
    for name, under in [("a", "old"), ("b", "new"), ("c", "newest"), ("d", "old"), ("d", "newest")]:
        ledger.done(key_digest(Secret.of(under), name), {"under": under})
    found = {name: find(ledger, secret, name) for name in "abcde"}
    assert {name: record and record.result for name, (record, _) in found.items()} == {
        "a": {"under": "old"}, "b": {"under": "new"}, "c": {"under": "newest"}, "d": {"under": "newest"}, "e": None,
    }  # fmt: skip
    assert {now for _, now in found.values()} == {100.0}


def test_what_the_ledger_keeps_can_not_be_guessed_without_the_secret(tmp_path: Path) -> None:
    path = tmp_path / "sends.db"
    with closing(open_ledger(f"sqlite:///{path}")) as ledger, FaultServer([Answer(200)]) as server:
        with requests.Session() as session, operation(key="receipt/42"):
            mount(session, AT_ONCE, ledger=ledger, secret="pepper")
            session.post(server.url(), json={"to": "someone@example.com"})
        (record,) = ledger.records()
        assert record.key == key_digest(Secret.of("pepper"), "receipt/42")
        assert record.key != key_digest(Secret.of("salt"), "receipt/42")
        what = content_of("POST", server.url(), JSON, b'{"to": "someone@example.com"}')
        assert record.fingerprint == fingerprint(Secret.of("pepper"), what)
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"receipt/42" not in written
    assert b"someone" not in written
    assert b"pepper" not in written


def test_the_secret_comes_from_the_argument_then_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRYPOLICY_SECRET", " new , old ")
    assert Secret.of(None).values == (b"new", b"old")
    assert Secret.of("mine").values == (b"mine",)
    assert Secret.of([b"a", "b"]).values == (b"a", b"b")
    monkeypatch.delenv("RETRYPOLICY_SECRET")
    assert Secret.of(None).missing


@pytest.mark.parametrize("given", ["", [], ["a", ""], b""])
def test_an_empty_secret_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="empty secret"):
        Secret.of(given)


@pytest.mark.parametrize("key", ["", " ", "a\nb", "a\x00", "\x7f", "\ud800", "k" * 1025, 7])
@pytest.mark.parametrize("place", ["operation", "header"])
def test_a_bad_key_is_one_error_before_anything_is_sent(key: Any, place: str) -> None:
    ledger = MemoryLedger()
    with FaultServer([Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, ledger=ledger, secret="s")
        if place == "operation":
            with pytest.raises(ConfigurationError, match="key"), operation(key=key):
                session.post(server.url(), data=b"x")
        else:
            with pytest.raises((ConfigurationError, requests.exceptions.InvalidHeader)):
                session.post(server.url(), data=b"x", headers={"Idempotency-Key": key})
        assert server.requests == ()
        assert not ledger.counts()


@pytest.mark.parametrize(
    "wrong",
    [{"label": 42}, {"label": "a\0b"}, {"label": "\udcff"}, {"not_after": "today"}, {"not_after": float("nan")}],
)
def test_what_an_operation_can_not_carry_is_one_error_before_it_begins(wrong: dict[str, Any]) -> None:
    [name] = wrong
    with pytest.raises(PolicyError, match=rf"{name}.* is not allowed; must be"), operation(key="k", **wrong):
        pytest.fail("it began")


# -- fingerprints --------------------------------------------------------------------------------


@given(document=documents, data=st.data())
def test_the_way_a_document_is_written_does_not_count(document: Any, data: st.DataObject) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shuffled(value[name]) for name in data.draw(st.permutations(list(value)))}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    one = json.dumps(document).encode("utf-8", "surrogatepass")
    other = json.dumps(shuffled(document), indent=data.draw(st.sampled_from([None, 2])), ensure_ascii=True)
    assert content(one) == content(other)


@given(one=documents, other=documents)
def test_other_documents_are_other_contents(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (content(json.dumps(one)) == content(json.dumps(other))) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a": 1}', '{"a": 1.0}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": [1, 2]}', '{"a": [2, 1]}'),  # order may mean something
        ('{"a": 1, "a": 2}', '{"a": 2}'),  # readers differ about the first one
        ('{"a": null}', "{}"),
        ("not json", "not  json"),
        ('"\\ud800"', '"\\ud801"'),
        ("[" * 100_000, "[" * 100_001),
    ],
)
def test_what_looks_alike_and_is_not(one: str, other: str) -> None:
    assert content(one) != content(other)
    assert content(one, left_out=["/x"]) != content(other, left_out=["/x"])


pairs = st.lists(st.tuples(st.text(min_size=1), st.text()), min_size=1, max_size=5)


@given(fields=pairs)
def test_the_escapes_of_a_form_do_not_count(fields: list[tuple[str, str]]) -> None:
    encoded = [[urllib.parse.quote(text.encode("utf-8", "replace"), safe="") for text in pair] for pair in fields]
    one = "&".join(f"{name}={value}" for name, value in encoded)
    other = "&".join(
        f"{''.join(f'%{b:02x}' for b in n.encode('utf-8', 'replace'))}={v.replace('%20', '+')}"
        for (n, _), (_, v) in zip(fields, encoded, strict=True)
    )
    assert content(one, FORM) == content(other, FORM)


@given(one=pairs, other=pairs)
def test_other_forms_are_other_contents(one: list[tuple[str, str]], other: list[tuple[str, str]]) -> None:
    def encoded(fields: list[tuple[str, str]]) -> str:
        return urllib.parse.urlencode([(n.encode("utf-8", "replace"), v.encode("utf-8", "replace")) for n, v in fields])

    assert (content(encoded(one), FORM) == content(encoded(other), FORM)) is (encoded(one) == encoded(other))


def test_bytes_of_a_form_that_are_no_text_count() -> None:
    assert content("a=%fe", FORM) != content("a=%ff", FORM)


def multipart(files: list[tuple[str, Any]], fields: dict[str, str] | None = None) -> tuple[bytes, str]:
    body, kind = RequestEncodingMixin._encode_files(files, fields or {})
    return body, kind


def test_a_boundary_does_not_count_and_everything_else_of_a_multipart_body_does() -> None:
    files = [("file", ("a.pdf", b"%PDF", "application/pdf")), ("file", ("b.txt", b"text", "text/plain"))]
    (one, kind), (again, other_kind) = (multipart(files, {"to": "a"}) for _ in range(2))
    assert kind != other_kind
    same = content(one, kind)
    assert content(again, other_kind) == same
    assert content(again, other_kind.replace("boundary=", 'BOUNDARY="') + '"') == same
    for changed in (
        multipart(files, {"to": "b"}),
        multipart(files[::-1], {"to": "a"}),
        multipart([("file", ("a.pdf", b"%PDF", "text/plain")), files[1]], {"to": "a"}),
        multipart([("file", ("c.pdf", b"%PDF", "application/pdf")), files[1]], {"to": "a"}),
    ):
        assert content(*changed) != same


def test_what_is_volatile_or_secret_does_not_count() -> None:
    left_out = ["/key", "/message/metadata/*/id", "token"]
    one = {"key": "s3cret", "message": {"text": "hi", "metadata": [{"id": 1, "x": 1}, {"id": 2}]}}
    other = {"key": "rotated", "message": {"text": "hi", "metadata": [{"id": 3, "x": 1}, {"id": 4}]}}
    assert content(json.dumps(one), left_out=left_out) == content(json.dumps(other), left_out=left_out)
    other["message"]["text"] = "ho"  # type: ignore[index] # a test's own dict
    assert content(json.dumps(one), left_out=left_out) != content(json.dumps(other), left_out=left_out)
    assert content("a=1&token=x", FORM, left_out) == content("token=y&a=1", FORM, left_out)
    (b1, k1), (b2, k2) = (multipart([("f", ("a", b"x"))], {"token": t}) for t in ("x", "y"))
    assert content(b1, k1, left_out) == content(b2, k2, left_out)


@pytest.mark.parametrize(
    ("pointer", "document", "counts"),
    [
        ("/a/1/id", {"a": [{"id": 1}, {"id": 2}, {"id": 3}]}, {"a": [{"id": 1}, {}, {"id": 3}]}),
        ("/a/7/id", {"a": [{"id": 1}]}, {"a": [{"id": 1}]}),
        ("/a/x/id", {"a": [{"id": 1}]}, {"a": [{"id": 1}]}),
        ("/a/*", {"a": [1, 2]}, {"a": [1, 2]}),
        ("/a/*/id", {"a": {"x": {"id": 1}, "y": {"id": 2, "z": 3}}}, {"a": {"x": {}, "y": {"z": 3}}}),
        ("/*", {"a": 1}, {"a": 1}),
        ("/a~1b", {"a/b": 1, "a": {"b": 2}, "a~1b": 3}, {"a": {"b": 2}, "a~1b": 3}),
        ("/a~0b", {"a~b": 1, "a~0b": 2}, {"a~0b": 2}),
        ("/a~01b", {"a~1b": 1, "a/b": 2}, {"a/b": 2}),
        ("/a/b", {"a": "b", "b": 1}, {"a": "b", "b": 1}),
    ],
)
def test_a_pointer_names_what_does_not_count(pointer: str, document: Any, counts: Any) -> None:
    """RFC 6901, and `*` for each element. What does not fit the document leaves out nothing."""
    assert content(json.dumps(document, indent=2), left_out=[pointer]) == content(json.dumps(counts))


def test_the_name_of_a_part_stands_in_its_head() -> None:
    def body(text: str) -> bytes:
        return f'--b\r\nContent-Type: text/plain\r\n\r\n{text} name="token"\r\n--b--\r\n'.encode()

    kind = "multipart/form-data; boundary=b"
    assert content(body("one"), kind, ["token"]) != content(body("other"), kind, ["token"])


@given(boundary=st.text(), body=st.binary())
@example(boundary="\u20ac", body=b"--?\r\n\r\n--?")
def test_whatever_a_multipart_body_is_it_has_a_content(boundary: str, body: bytes) -> None:
    kind = f'multipart/form-data; boundary="{boundary}"'
    assert content(body, kind) == content(body, kind)


def test_bodies_that_are_known_to_be_built_alike_count_byte_for_byte() -> None:
    assert content('{"a":1}', left_out=[]) != content('{"a": 1}', left_out=[])
    assert content('{"a":1}', left_out=[]) == content(b'{"a":1}', left_out=[])


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("https://user:password@API.example.com/emails", True),
        ("https://api.example.com/emails#part", True),
        ("https://api.example.com/emails?x=1", False),
        ("https://api.example.com/Emails", False),
        ("http://api.example.com/emails", False),
        ("https://api.example.com:8443/emails", False),
    ],
)
def test_where_it_goes_counts_and_who_sends_it_does_not(url: str, same: bool) -> None:
    assert (content(b"x", url=url) == content(b"x")) is same


def test_on_the_wire_a_rebuilt_body_is_the_same_call() -> None:
    """Another order of names, another boundary: the redelivered job is answered from the record, not refused."""
    ledger = MemoryLedger()
    with FaultServer([Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, ledger=ledger, secret="s")
        with operation(key="json"):
            session.post(server.url(), json={"to": "a", "subject": "b"})
        with pytest.raises(AlreadyDone), operation(key="json"):
            session.post(server.url(), json={"subject": "b", "to": "a"})
        with operation(key="file"):
            session.post(server.url(), files={"f": b"1"}, data={"a": "1"})
        with pytest.raises(AlreadyDone), operation(key="file"):
            session.post(server.url(), files={"f": b"1"}, data={"a": "1"})
        with pytest.raises(KeyReused), operation(key="file"):
            session.post(server.url(), files={"f": b"2"}, data={"a": "1"})
        assert server.complete == 2
    assert ledger.counts() == {Phase.DONE: 2}


def test_a_profile_says_what_of_a_body_is_volatile() -> None:
    profile = Provider(name="made-up", hosts=("127.0.0.1",), volatile=("/id",), secret=("/key",))
    with FaultServer([Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, ledger=MemoryLedger(), secret="s", provider=profile)
        with operation(key="k"):
            session.post(server.url(), json={"id": 1, "key": "a", "text": "hi"})
        with pytest.raises(AlreadyDone), operation(key="k"):
            session.post(server.url(), json={"id": 2, "key": "b", "text": "hi"})
        with pytest.raises(KeyReused), operation(key="k"):
            session.post(server.url(), json={"id": 1, "key": "a", "text": "ho"})
        assert server.complete == 1


def test_a_key_in_the_body_is_not_part_of_the_content_it_names() -> None:
    """The key goes out in a copy: what is fingerprinted is what the caller gave."""
    placement = KeyPlacement(pointer="/headers/idempotencyKey", format="uuid", window=60.0)
    profile = Provider(name="made-up", hosts=("127.0.0.1",), key=placement)
    ledger = MemoryLedger()
    with FaultServer([Answer(200)]) as server, requests.Session() as session:
        mount(session, AT_ONCE, ledger=ledger, secret="s", provider=profile)
        with operation(key="receipt/42"):
            session.post(server.url(), json={"text": "hi"})
        (record,) = ledger.records()
        what = content_of("POST", server.url(), JSON, b'{"text": "hi"}', [])
        assert record.fingerprint == fingerprint(Secret.of("s"), what)
        assert "idempotencyKey" in json.loads(server.requests[0].body)["headers"]
