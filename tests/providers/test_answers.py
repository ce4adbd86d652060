"""The language of what is kept and how it is played back; above all, what is never kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrypolicy.errors import PolicyError
from retrypolicy.providers import Answers, Kept, Template, load, names
from retrypolicy.providers.pointer import MISSING, at, walk

ADDRESSES = st.emails() | st.from_regex(r"[a-z0-9._]{1,12}@[a-z]{1,9}\.(com|org)", fullmatch=True)


def planted(address: str, where: str) -> Any:
    """The address in every place of an answer that any profile looks at, or might."""
    texts = {
        "plain": address,
        "brackets": f"<{address}>",
        "name": f"Ann <{address}>",
        "sentence": f"refused: {address}.",
    }
    text = texts[where]
    ids = ("id", "ID", "_id", "messageId", "job_id", "MessageID", "Message", "message", "bulk_email_id", "status")
    one = dict.fromkeys([*ids, "ErrorCode", "PercentageCompleted", "success"], text) | {
        "messageIds": [text, text],
        "message_ids": [text],
        **dict.fromkeys(["email", "Email", "mail_rcpt"], address),
    }
    return {
        **one,
        "results": {"id": text, "total_accepted_recipients": text, "total_rejected_recipients": text},
        "data": {"messages": {address: one, text: one}},
        "responses": [one, one],
        "emails": [one],
        "failed_emails": {address: text, text: text},
        "warnings": [{"type": text, "recipients": [one]}],
        "Messages": [{"Status": text, "To": [one], "Cc": [one], "Bcc": [one]}],
    }


def request_to(address: str) -> dict[str, Any]:
    """A request to this address in every shape that a profile looks at, with the address in ids as well."""
    one = {"email": address, "Email": address, "metadata": {"anymail_id": address}, "To": address}
    return {
        "to": [one],
        "message": {"to": [one], "recipients": [one]},
        "Messages": [{"To": [one]}],
        "personalizations": [{"custom_args": {"anymail_id": address}}],
        "To": address,
    }


@given(
    address=ADDRESSES,
    where=st.sampled_from(["plain", "brackets", "name", "sentence"]),
    as_list=st.booleans(),
    in_header=st.booleans(),
)
def test_no_summary_holds_an_address(address: str, where: str, as_list: bool, in_header: bool) -> None:
    answer = planted(address, where)
    content = json.dumps([answer, answer] if as_list else answer).encode()
    headers = {"X-Message-Id": address} if in_header else {}
    request = json.dumps(request_to(address))
    for name in names():
        stored = json.dumps(load(name).summary(200, content, headers=headers, request=request), ensure_ascii=False)
        assert address not in stored, name
        assert "@" not in stored, name


@given(content=st.binary() | st.text().map(str.encode), request=st.binary())
def test_anything_can_be_summed_up_and_played_back(content: bytes, request: bytes) -> None:
    for name in names():
        kept = load(name).summary(200, content, headers={"x": "y"}, request=request)
        assert kept["status"] == 200
        made = load(name).replay(kept, request)
        assert made is None or (200 <= made[0] < 300 and isinstance(made[2], bytes))


@pytest.mark.parametrize("form", [".*", r"\S+", "<.*>", "[^ ]+@[^ ]+", "("])
def test_a_form_that_lets_an_address_through(form: str) -> None:
    with pytest.raises(PolicyError, match=r"Kept\.form"):
        Kept(at="/id", form=form)


@pytest.mark.parametrize(
    "value",
    ["two words", "", "x" * 129, "ann@example.com", None, 1.5, {"a": 1}, 2**63, "line\n", [], [None, "a b"], [[1]]],
)
def test_not_kept(value: Any) -> None:
    assert Kept(at="/id").value({"id": value}, {}, MISSING) is None


@pytest.mark.parametrize("value", ["a", "0b41b2f4-3ad5", 0, -7, True, False, ["a", 1], ["a", None]])
def test_kept(value: Any) -> None:
    assert Kept(at="/id").value({"id": value}, {}, MISSING) == value


def test_sources() -> None:
    assert Kept(at="header:X-Id").value({}, {"x-id": "1"}, {}) == "1"
    assert Kept(at="request:/a/*/b").value({}, {}, {"a": [{"b": "1"}, {}, {"b": "3"}]}) == ["1", None, "3"]
    assert Kept(at="request:/a/*/b").value({"a": [{"b": "1"}]}, {}, MISSING) is None
    with pytest.raises(PolicyError, match=r"Kept\.at"):
        Kept(at="id")


def test_walk() -> None:
    document = {"a": [{"b": {"x": 1, "y": 2}}, {"b": {"z": 3}}, 5], "~/": [0]}
    assert list(walk(document, "/a/*/b/*#")) == [(("0", "x"), 1), (("0", "y"), 2), (("1", "z"), 3)]
    assert at(document, "/a/*/b/*#", ("1", "z")) == 3
    assert at(document, "/~0~1/0") == 0
    assert at(document, "") is document
    assert at(document, "/a/7") is MISSING
    assert at(document, "/a/x") is MISSING
    assert list(walk(document, "/*")) == []
    assert list(walk(document, "/a/*#")) == []


EACH = Answers(
    keep={"ids": "/ids/*"},
    recipients=["/to/*"],
    address="/who/*/at",
    each={"state": "/who/*/is"},
    replay=[
        Template(need=["ids"], body=["*ids", {"id": "{ids}", "to": "{address?}"}]),
        Template(
            status=202,
            headers={"X": "{state?}", "Y": "fixed"},
            body={
                "rows": ["*", {"to": "{address}", "is": "{state}"}],
                "names": {"{address}": "{state?none}"},
                "subject": "{request:/subject?null}",
                "list": [1, "{state?}", {"deep": True}],
            },
        ),
    ],
)
ASKED = json.dumps({"to": ["Ann <ann@x.org>", "bob@x.org"], "subject": "S"})


def test_kept_in_the_order_of_the_request() -> None:
    body = b'{"who": [{"at": "BOB@x.org", "is": "fine"}, {"at": "eve@x.org", "is": "odd"}]}'
    kept = EACH.summary(200, body, {}, ASKED)
    assert kept == {"status": 200, "state": [None, "fine"]}
    assert EACH.summary(200, body, {}, None) == {"status": 200}


def test_filled() -> None:
    made = EACH.made({"state": [None, "fine"]}, ASKED)
    assert made is not None
    status, headers, body = made
    assert (status, headers) == (202, {"X": "[None, 'fine']", "Y": "fixed"})
    assert json.loads(body) == {
        "rows": [{"to": "bob@x.org", "is": "fine"}],
        "names": {"ann@x.org": "none", "bob@x.org": "fine"},
        "subject": "S",
        "list": [1, [None, "fine"], {"deep": True}],
    }


def test_optional_parts_are_left_out() -> None:
    made = EACH.made({}, '{"to": ["ann@x.org"]}')
    assert made is not None
    assert made[1] == {"Y": "fixed"}
    assert json.loads(made[2]) == {
        "rows": [],
        "names": {"ann@x.org": "none"},
        "subject": None,
        "list": [1, {"deep": True}],
    }


def test_rows_of_a_kept_list_reach_beyond_the_recipients() -> None:
    made = EACH.made({"ids": ["1", "2", None, "4"]}, '{"to": ["ann@x.org"]}')
    assert made is not None
    assert json.loads(made[2]) == [{"id": "1", "to": "ann@x.org"}, {"id": "2"}, {"id": "4"}]


def test_without_recipients_nothing_can_be_made_of_them() -> None:
    assert EACH.made({"state": ["fine"]}, None) is None
    assert EACH.made({"ids": []}, None) is None
    by_name = Answers(recipients=["/to/*"], replay=[Template(body={"{address}": 1})])
    assert by_name.made({}, "{}") is None
    assert by_name.made({}, '{"to": ["ann@x.org"]}') is not None


def test_a_template_is_not_filled_twice() -> None:
    answers = Answers(keep={"id": "/id"}, replay=[Template(body={"id": "{id}"})])
    assert answers.made({"id": "{id}"}, None) == (200, {"Content-Type": "application/json"}, b'{"id": "{id}"}')


@pytest.mark.parametrize(
    "values",
    [
        {"keep": {"status": "/s"}},
        {"keep": {"address": "/s"}},
        {"each": {"id": "/*/id"}},
        {"keep": {"id": "/id"}, "replay": [Template(body={"id": "{di}"})]},
        {"keep": {"id": "/id"}, "replay": [Template(body=["*di", 1])]},
        {"keep": {"id": "/id"}, "replay": [Template(need=["di"])]},
        {"keep": {"id": "/id"}, "replay": [Template(headers={"X": "{di?}"})]},
    ],
)
def test_values_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=r"Answers\."):
        Answers(**values)
