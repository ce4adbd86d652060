"""The ways in: `EMAIL_BACKEND` and Anymail's settings, and Django 6.1's `MAILERS` with options."""

from __future__ import annotations

from typing import Any

import django
import pytest
from anymail.exceptions import AnymailAPIError
from django.core.mail import EmailMessage
from django.test import override_settings

from retrypolicy import report
from retrypolicy.errors import ConfigurationError
from retrypolicy.guard import MemoryLedger, Phase
from retrypolicy.testing import Answer, FaultServer
from tests.anymail.sending import ok

pytestmark = pytest.mark.usefixtures("project")

BACKEND = "retrypolicy.anymail.backends.resend.EmailBackend"


def message() -> EmailMessage:
    return EmailMessage("Hello", "Thank you.", "shop@example.com", ["ann@example.com"])


def test_email_backend(ledger: MemoryLedger) -> None:
    with (
        FaultServer([ok("resend")]) as server,
        override_settings(EMAIL_BACKEND=BACKEND, ANYMAIL={"RESEND_API_KEY": "k", "RESEND_API_URL": server.url("/")}),
    ):
        assert message().send() == 1
        assert server.complete == 1
    assert ledger.counts() == {Phase.DONE: 1}


@pytest.mark.skipif(django.VERSION < (6, 1), reason="MAILERS came with Django 6.1")
def test_mailers() -> None:
    from django.core.mail import InvalidMailer

    own = MemoryLedger()

    def mailers(**options: Any) -> Any:
        options = {"api_key": "k", "api_url": server.url("/"), **options}
        return override_settings(MAILERS={"default": {"BACKEND": BACKEND, "OPTIONS": options}})

    with FaultServer([Answer(503, headers={"Retry-After": "0"})] * 2 + [ok("resend")]) as server:
        with mailers(retry_policy="worker", retry_ledger=own, retry_provider="resend"):
            sent = message()
            assert sent.send() == 1
        found = report(sent.anymail_status)
        assert found is not None
        assert (found.policy, found.total_attempts) == ("worker", 3)
        assert own.counts() == {Phase.DONE: 1}
        with mailers(retry_policy="none"), pytest.raises(ConfigurationError, match="retry policy"):
            message().send()
        with mailers(retry_polciy="web"), pytest.raises(InvalidMailer, match="retry_polciy"):
            message().send()


def test_a_policy_as_data(project: dict[str, Any]) -> None:
    project["POLICIES"] = {"once": {"extends": "web", "max_attempts": 1}}
    project["POLICY"] = "once"
    with (
        FaultServer([Answer(503, headers={"Retry-After": "0"})]) as server,
        override_settings(EMAIL_BACKEND=BACKEND, ANYMAIL={"RESEND_API_KEY": "k", "RESEND_API_URL": server.url("/")}),
    ):
        with pytest.raises(AnymailAPIError) as caught:
            message().send()
        assert server.complete == 1
    found = report(caught.value)
    assert found is not None
    assert found.policy == "once"
