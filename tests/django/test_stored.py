"""Messages as text, and back."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.mime.image import MIMEImage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any
from uuid import UUID

import pytest
from anymail.message import AnymailMessage, attach_inline_image
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.mail.backends.dummy import EmailBackend
from django.utils.translation import gettext_lazy
from hypothesis import given
from hypothesis import strategies as st

from retrypolicy.anymail import KEY_HEADER
from retrypolicy.django.naming import content
from retrypolicy.django.stored import dump, load
from retrypolicy.errors import ConfigurationError
from tests.anymail.sending import mail


def mime(message: EmailMessage) -> bytes:
    """What the message looks like on the wire, without what is made anew each time."""
    text = message.message().as_bytes()
    return re.sub(rb"={10,}\d+==|^(Message-ID|Date): .*$", b"", text, flags=re.MULTILINE)


def rich() -> AnymailMessage:
    message = AnymailMessage(
        "Größe", "text", "Shop <shop@example.com>", ["ann@example.com"], cc=["c@example.com"], bcc=["b@example.com"],
        reply_to=["r@example.com"], headers={"X-Order": "42"}, tags=["receipt"], metadata={"order": 42, "ok": True},
        send_at=datetime(2027, 1, 2, 3, 4, 5, 6, tzinfo=UTC), track_opens=False, template_id="t",
        merge_data={"ann@example.com": {"$type": "of thing", "price": 1.5}}, envelope_sender="e@example.com",
        esp_extra={"nested": [{"a": None}], 7: (1, 2)},
    )  # fmt: skip
    message.attach_alternative("<b>text</b>", "text/html")
    message.attach("a.txt", "text", "text/plain")
    message.attach("b.pdf", b"\x00\xff%PDF", "application/pdf")
    attach_inline_image(message, b"\x89PNG\r\n\x1a\n123", "x.png")
    return message


def test_a_message_comes_back_as_it_was() -> None:
    message = rich()
    text = dump(message)
    again = load(text)
    assert type(again) is AnymailMessage
    assert dump(again) == text
    assert mime(again) == mime(message)
    assert content(again) == content(message)  # what keys are made of
    assert again.esp_extra == {"nested": [{"a": None}], 7: (1, 2)}
    assert again.merge_headers is message.merge_headers  # Anymail's marker for "not set"
    assert text.isascii()
    json.loads(text)


def test_plain_messages_and_messages_in_messages() -> None:
    inner = EmailMessage("inner", "b", to=["z@example.com"])
    message = EmailMessage("s", "b", to=["a@example.com"])
    message.attach("inner.eml", inner, "message/rfc822")
    again = load(dump(message))
    assert type(again) is EmailMessage
    assert mime(again) == mime(message)
    assert again.attachments[0].content.subject == "inner"


@pytest.mark.filterwarnings("ignore:.*MIMEBase")
def test_parts_of_the_older_kind() -> None:
    message = EmailMultiAlternatives("s", "b", to=["a@example.com"])
    image = MIMEImage(b"\x89PNG\r\n\x1a\n123", "png")
    image.add_header("Content-ID", "<logo>")
    both = MIMEMultipart("mixed")
    both.attach(MIMEText("Größe", "plain", "utf-8"))
    both.attach(image)
    for part in (image, MIMEText("note", "csv"), both):
        message.attach(part)
    again = load(dump(message))
    assert mime(again) == mime(message)
    assert load(dump(again)).attachments[0]["Content-ID"] == "<logo>"


def test_values_of_all_kinds() -> None:
    values = {
        "extra": [
            b"\x00", bytearray(b"\x01"), date(2027, 1, 2), datetime(2027, 1, 2, 3), timedelta(days=2, microseconds=3),  # noqa: DTZ001
            Decimal("1.10"), UUID(int=7), (1, (2,)), {"a": {"$type": "tuple", "value": 1}}, None, True, "\x00\ud800",
        ]
    }  # fmt: skip
    again: Any = load(dump(mail(**values)))
    assert again.extra == values["extra"]
    assert [type(value) for value in again.extra] == [type(value) for value in values["extra"]]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
        | st.binary() | st.datetimes() | st.decimals(allow_nan=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("$type") | st.integers(), inner)
        | st.tuples(inner, inner),
        max_leaves=8,
    )
)  # fmt: skip
def test_any_plain_value_comes_back(value: Any) -> None:
    again: Any = load(dump(mail(esp_extra=value)))
    assert again.esp_extra == value
    assert type(again.esp_extra) is type(value)


def test_a_lazy_text_is_said_in_the_language_of_whoever_put_it() -> None:
    message = mail(subject=gettext_lazy("Monday"), to=[gettext_lazy("Tuesday")])
    again = load(dump(message))
    assert (again.subject, again.to) == ("Monday", ["Tuesday"])
    assert type(again.subject) is str


def test_what_has_a_place_of_its_own_and_what_holds_secrets_is_left_out() -> None:
    message = mail(idempotency_key="k", retry_label="order 42", extra_headers={KEY_HEADER: "k", "X-A": "1"})
    message.anymail_status.esp_response = "re_secret"  # type: ignore[assignment]
    message.__dict__["_retrypolicy_key"] = "made up"
    text = dump(message)
    assert "re_secret" not in text
    assert "made up" not in text
    assert "order 42" not in text
    assert load(text).extra_headers == {"X-A": "1"}


class Own(EmailMessage):
    """A project's own kind."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.footer = "none"


class Needy(EmailMessage):
    def __init__(self, order: int) -> None:
        super().__init__(to=["a@example.com"])
        self.order = order


def test_a_class_of_ones_own() -> None:
    message = Own("s", to=["a@example.com"])
    message.footer = "bye"
    again = load(dump(message))
    assert type(again) is Own
    assert again.footer == "bye"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"esp_extra": {"to": object()}}, "message.esp_extra: object can't be stored"),
        ({"tags": {"a"}}, "message.tags: set can't be stored"),
        ({"metadata": {"x": float("nan")}}, "message.metadata: nan can't be stored"),
        ({"hook": print}, "message.hook: builtin_function_or_method can't be stored"),
    ],
)
def test_what_can_not_be_stored_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        dump(mail(**change))


@pytest.mark.filterwarnings("ignore:.*connection")
def test_a_connection_can_not_be_stored() -> None:
    message = mail(connection=EmailBackend())
    with pytest.raises(ConfigurationError, match=r"message\.connection: a connection can't be stored"):
        dump(message)


def test_classes_that_can_not_be_made_again() -> None:
    class Local(EmailMessage):
        pass

    with pytest.raises(ConfigurationError, match="a class that its module names"):
        dump(Local("s", to=["a@example.com"]))
    with pytest.raises(ConfigurationError, match=r"can't be read back \(TypeError\)"):
        dump(Needy(42))


@pytest.mark.parametrize(
    "text",
    [
        "", "no JSON", "[]", "{}", "null", '{"format": 2}', '{"format": 1}', '{"format": 1, "class": "os.system"}',
        '{"format": 1, "class": "os.path.join", "attributes": {}}',
        '{"format": 1, "class": "no.such.Message", "attributes": {}}',
        '{"format": 1, "class": "django.core.mail.EmailMessage", "attributes": {"a": {"$type": "part", "value": 7}}}',
        '{"format": 1, "class": "django.core.mail.EmailMessage", "attributes": {"a": {"$type": "code", "value": "?"}}}',
        '{"format": 1, "class": "django.core.mail.EmailMessage", "attributes": {"a": {"$type": "tuple"}}}',
    ],
)  # fmt: skip
def test_what_is_no_message_can_not_be_read_back(text: str) -> None:
    with pytest.raises(ConfigurationError, match="can't be read back") as caught:
        load(text)
    assert caught.value.__cause__ is None
