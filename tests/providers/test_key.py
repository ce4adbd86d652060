"""Where the key goes, and what goes out under it."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict

from retrypolicy.errors import ConfigurationError, PolicyError
from retrypolicy.providers import KeyPlacement, Provider, load, names

KEYED = [name for name in names() if load(name).key is not None]
HEADER = KeyPlacement(header="Idempotency-Key", window=60)
BODY = KeyPlacement(pointer="/message/key", window=60)


def test_which_profiles_honour_keys() -> None:
    assert set(KEYED) == {"resend", "sparkpost", "brevo", "unisender_go", "stripe", "idempotency-key"}


@pytest.mark.parametrize("name", KEYED)
@given(key=st.text(max_size=300), generation=st.integers(1, 9))
def test_what_goes_out_fits_and_never_holds_an_address(name: str, key: str, generation: int) -> None:
    placement = load(name).key
    assert placement is not None
    out = placement.outgoing(key, generation)
    assert "@" not in out
    assert 0 < len(out) <= placement.max_length
    assert re.fullmatch(placement.pattern, out)
    assert out == placement.outgoing(key, generation)
    if placement.format == "uuid":
        assert str(uuid.UUID(out)) == out
    if generation > 1:
        assert out != placement.outgoing(key, generation - 1)
        assert out != key


@pytest.mark.parametrize(
    ("name", "key", "own"),
    [
        ("resend", "receipt/42", True),
        ("resend", "x" * 256, True),
        ("resend", "x" * 257, False),
        ("resend", "ann@example.com", False),
        ("resend", "zwölf", False),
        ("resend", "two words", False),
        ("resend", "", False),
        ("sparkpost", "receipt-42", True),
        ("sparkpost", "receipt/42", False),
        ("sparkpost", "receipt-42\n", False),
        ("brevo", "0b41b2f4-3ad5-4a5e-9a2c-4c6b6f7f0f10", True),
        ("brevo", "0B41B2F4-3AD5-4A5E-9A2C-4C6B6F7F0F10", False),
        ("brevo", "{0b41b2f4-3ad5-4a5e-9a2c-4c6b6f7f0f10}", False),
        ("brevo", "receipt-42", False),
        ("unisender_go", "x" * 36, True),
        ("unisender_go", "x" * 37, False),
    ],
)
def test_the_callers_own_key_goes_out_where_it_fits(name: str, key: str, own: bool) -> None:
    assert (load(name).outgoing(key, 1) == key) is own
    assert load(name).outgoing(key, 2) != key


def test_the_outgoing_key_never_changes() -> None:
    # A record of yesterday must give the same key after an update of this library.
    assert load("brevo").outgoing("receipt/42", 1) == "5569af66-d2ad-5e4d-90b1-3cef5968c76b"
    assert load("resend").outgoing("receipt/42", 2) == load("brevo").outgoing("receipt/42", 2)


def test_header() -> None:
    headers: dict[str, str] = {"Accept": "*/*"}
    assert HEADER.place(headers, b"anything", "k") == b"anything"
    assert HEADER.place(headers, None, "k") is None  # a second attempt
    assert headers == {"Accept": "*/*", "Idempotency-Key": "k"}
    assert HEADER.given(headers, None) == "k"
    with pytest.raises(ConfigurationError, match="another key"):
        HEADER.place({"idempotency-key": "mine"}, b"", "k")


def test_header_as_the_draft_wants_it() -> None:
    headers: CaseInsensitiveDict[str] = CaseInsensitiveDict()
    provider = load("idempotency-key")
    provider.place(headers, b"", 'a"b\\c')
    assert headers["idempotency-key"] == r'"a\"b\\c"'
    assert provider.given(headers, b"") == 'a"b\\c'
    assert provider.given({"Idempotency-Key": "plain"}, b"") == "plain"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(body=st.dictionaries(st.text(max_size=5), json_values), as_text=st.booleans(), ascii_only=st.booleans())
def test_everything_else_in_the_body_is_kept(body: dict[str, Any], as_text: bool, ascii_only: bool) -> None:
    body.pop("message", None)
    text = json.dumps(body, ensure_ascii=ascii_only)
    content = text if as_text or "\\ud" in json.dumps(body) else text.encode()
    placed = BODY.place({}, content, "k")
    assert type(placed) is type(content)
    after = json.loads(placed or "")
    assert after.pop("message") == {"key": "k"}
    assert json.dumps(after) == json.dumps(body)
    assert BODY.given({}, placed) == "k"
    assert BODY.place({}, placed, "k") == placed


@pytest.mark.parametrize(
    "body",
    [
        None,
        b"",
        "",
        b"not json",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        '{"message": []}',
        '{"message": {"key": 3}}',
        "[" * 9999,
        '{"message": {}, "n": NaN}',
        '{"message": {}, "n": 1e999}',
    ],
)
def test_a_body_without_a_place_for_the_key(body: bytes | str | None) -> None:
    with pytest.raises(ConfigurationError):
        BODY.place({}, body, "k")
    assert BODY.given({}, body) is None


def test_a_stream_has_no_place_for_the_key() -> None:
    with pytest.raises(ConfigurationError):
        BODY.place({}, iter([b"{}"]), "k")


def test_another_key_in_the_body() -> None:
    with pytest.raises(ConfigurationError, match="another key") as caught:
        BODY.place({}, '{"message": {"key": "mine"}}', "k")
    assert "mine" not in str(caught.value)
    assert BODY.place({}, '{"message": {"key": null}}', "k") == '{"message": {"key": "k"}}'


def test_a_provider_without_a_key() -> None:
    provider = load("mailgun")
    assert not provider.honours("POST", "api.mailgun.net", "/v3/example.com/messages")
    assert provider.given({"Idempotency-Key": "k"}, b"") is None
    with pytest.raises(ConfigurationError, match="honours no"):
        provider.place({}, b"", "k")
    with pytest.raises(ConfigurationError, match="honours no"):
        provider.outgoing("k", 1)


@pytest.mark.parametrize(
    ("name", "method", "host", "path", "honoured"),
    [
        ("resend", "POST", "api.resend.com", "/emails", True),
        ("resend", "post", "API.Resend.com.", "/emails?x=1", True),
        ("resend", "POST", "api.resend.com", "/emails/batch", True),
        ("resend", "POST", "api.resend.com", "/domains", False),
        ("resend", "GET", "api.resend.com", "/emails", False),
        ("resend", "PATCH", "api.resend.com", "/emails", False),
        ("resend", "POST", "evil-api.resend.com", "/emails", False),
        ("resend", "POST", "127.0.0.1", "/emails", False),
        ("sparkpost", "POST", "api.eu.sparkpost.com", "/api/v1/transmissions/", True),
        ("sparkpost", "POST", "api.sparkpost.com", "/api/v1/webhooks", False),
        ("brevo", "POST", "api.brevo.com", "/v3/smtp/email", True),
        ("brevo", "POST", "api.brevo.com", "/v3/contacts", False),
        ("unisender_go", "POST", "go2.unisender.ru", "/ru/transactional/api/v1/email/send.json", True),
        ("unisender_go", "POST", "eu1.unione.io", "/en/transactional/api/v1/email/send.json", True),
        ("unisender_go", "POST", "unione.io", "/en/transactional/api/v1/email/send.json", False),
        ("unisender_go", "POST", "eu1.unione.io", "/en/transactional/api/v1/template/set.json", False),
        ("stripe", "POST", "api.stripe.com", "/v1/charges", True),
        ("stripe", "DELETE", "api.stripe.com", "/v1/customers/1", False),
        ("idempotency-key", "POST", "api.example.com", "/", False),  # its hosts are the user's to name
    ],
)
def test_honours(name: str, method: str, host: str, path: str, honoured: bool) -> None:
    assert load(name).honours(method, host, path) is honoured


@pytest.mark.parametrize(
    ("host", "covered"),
    [("example.com", False), ("a.example.com", True), ("b.a.example.com", True), ("aexample.com", False), ("", False)],
)
def test_a_star_covers_the_names_below(host: str, covered: bool) -> None:
    assert Provider(name="x", hosts=["*.example.com"]).covers(host) is covered


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"window": 60}, "KeyPlacement"),
        ({"header": "a", "pointer": "/a", "window": 60}, "KeyPlacement"),
        ({"header": "a b", "window": 60}, "KeyPlacement.header"),
        ({"pointer": "a", "window": 60}, "KeyPlacement.pointer"),
        ({"header": "a", "window": 0}, "KeyPlacement.window"),
        ({"header": "a", "window": 60, "margin": 60}, "KeyPlacement.margin"),
        ({"header": "a", "window": 60, "margin": -1}, "KeyPlacement.margin"),
        ({"header": "a", "window": 60, "format": "ulid"}, "KeyPlacement.format"),
        ({"header": "a", "window": 60, "pattern": "("}, "KeyPlacement.pattern"),
        ({"header": "a", "window": 60, "max_length": 20}, "KeyPlacement.max_length"),
        ({"header": "a", "window": 60, "methods": ["GET"]}, "KeyPlacement.methods"),
        ({"header": "a", "window": 60, "methods": "post"}, "KeyPlacement.methods"),
        ({"header": "a", "window": 60, "quoted": "yes"}, "KeyPlacement.quoted"),
        ({"header": "a", "window": 60, "windows": 1}, "KeyPlacement.windows"),
    ],
)
def test_values_that_cannot_be(values: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError) as caught:
        KeyPlacement(**values)
    assert caught.value.field == field


@pytest.mark.parametrize(("window", "margin"), [(60, 6), (900, 90), (86400, 300)])
def test_the_margin_is_less_than_the_window(window: float, margin: float) -> None:
    assert KeyPlacement(header="a", window=window).margin == margin
