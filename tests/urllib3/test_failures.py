"""What an error proves without a watch, and how often it is worth repeating."""

from __future__ import annotations

import http.client
import socket
import ssl
import traceback
from typing import Any

import pytest
import requests
import urllib3
from urllib3 import exceptions as errors

from retrypolicy.outcome import Stage
from retrypolicy.testing import TLS_FAULTS, Answer, Close, FaultServer, Handshake, Refuse
from retrypolicy.urllib3.failures import failure_of
from retrypolicy.urllib3.wire import Watch
from tests.urllib3.wireclient import attempt, pool


def raised(function, *args, **kwargs):
    with pytest.raises(Exception) as caught:
        function(*args, **kwargs)
    return caught.value


def of_requests(url, **options):
    with requests.Session() as session:
        session.trust_env = False
        return raised(session.post, url, data=b"x", **options)


def unresolved(code):
    return errors.NameResolutionError("host", None, socket.gaierror(code, "text"))


def caused(error, cause):
    error.__cause__ = cause
    return error


def alert(reason):
    error = ssl.SSLError(1, f"[SSL: {reason}] text")
    error.reason = reason
    return error


# The stage, by the type alone


def test_a_refused_connection_was_not_sent():
    with FaultServer([Refuse()]) as server:
        for retries in (False, urllib3.Retry(0)):
            with urllib3.PoolManager() as manager:
                error = raised(manager.request, "POST", server.url(), retries=retries)
            assert failure_of(error, None).stage is Stage.NOT_CONNECTED
        assert failure_of(of_requests(server.url()), None).stage is Stage.NOT_CONNECTED
        proxies = {"http": server.proxy_url}
        assert failure_of(of_requests("http://origin.test/", proxies=proxies), None).stage is Stage.NOT_CONNECTED


def test_an_unknown_name_was_not_sent():
    failed = failure_of(of_requests("http://nowhere.invalid/"), None)
    assert failed.stage is Stage.NOT_CONNECTED
    assert failed.retry_limit in (1, None)  # a machine without a resolver says "try again"


@pytest.mark.parametrize("certificate", ["untrusted", "expired", "wrong_host"])
def test_a_bad_certificate_was_not_sent_and_is_permanent(certificate):
    with FaultServer([Handshake(certificate)], tls=True) as server:
        failed = failure_of(of_requests(server.url(), verify=server.ca), None)
    assert failed.stage is Stage.NOT_CONNECTED
    assert failed.retry_limit == 0


@pytest.mark.parametrize("step", [Close("request"), Answer(200, cut=("status", 4))])
def test_what_may_have_been_sent_is_unobserved(step):
    with FaultServer([step]) as server:
        for error in (
            of_requests(server.url()),
            of_requests("http://origin.test/", proxies={"http": server.proxy_url}),
        ):
            assert failure_of(error, None).stage is Stage.UNOBSERVED
            assert failure_of(error, Watch()).stage is Stage.UNOBSERVED
            assert failure_of(error, None).retry_limit is None


@pytest.mark.parametrize("name", ["hello_fin", "hello_rst", "hello_alert", "hello_stall"])
def test_a_broken_handshake_is_unobserved_without_a_watch(name):
    with FaultServer([TLS_FAULTS[name]], tls=True) as server:
        assert failure_of(of_requests(server.url(), verify=server.ca, timeout=0.3), None).stage is Stage.UNOBSERVED


def test_the_error_of_another_call_proves_nothing():
    """A fallback in an except block: what is being handled there is not what failed here."""
    with FaultServer([Refuse()]) as first, FaultServer([Close("request")]) as second:
        try:
            raise of_requests(first.url())
        except requests.ConnectionError:
            error = of_requests(second.url())
    assert "refused" in "".join(traceback.format_exception(error))  # it is in there, as context
    assert failure_of(error, None).stage is Stage.UNOBSERVED
    assert second.complete == 1


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        OSError(111, "refused"),
        ConnectionRefusedError(),
        socket.gaierror(socket.EAI_NONAME, "by somebody else"),
        TimeoutError("timed out"),
        errors.ReadTimeoutError(None, "/", "timed out"),
        errors.ProtocolError("Connection aborted.", ConnectionResetError()),
        errors.ProxyError("Unable to connect to proxy", ConnectionResetError()),
        errors.SSLError(ssl.SSLEOFError(8, "EOF")),
        http.client.RemoteDisconnected("closed"),
    ],
)
def test_other_types_prove_nothing(error):
    assert failure_of(error, None).stage is Stage.UNOBSERVED


@pytest.mark.parametrize(
    "error",
    [
        errors.ConnectTimeoutError(None, "timed out"),
        errors.NewConnectionError(None, "refused"),
        errors.MaxRetryError(None, "/", errors.NewConnectionError(None, "refused")),
        errors.ProxyError("Unable to connect to proxy", errors.ConnectTimeoutError(None, "timed out")),
        errors.SSLError(ssl.SSLCertVerificationError(1, "self signed")),
        errors.EmptyPoolError(None, "empty"),
        errors.ClosedPoolError(None, "closed"),
        errors.LocationParseError("host"),
        caused(Exception("of a wrapper"), errors.NewConnectionError(None, "refused")),
        caused(Exception(OSError("beside it")), errors.NewConnectionError(None, "refused")),
    ],
)
def test_these_types_prove_that_nothing_was_sent(error):
    assert failure_of(error, None).stage is Stage.NOT_CONNECTED
    assert failure_of(requests.ConnectionError(error), Watch()).stage is Stage.NOT_CONNECTED


def test_the_watch_has_the_better_word():
    with FaultServer([Close("request")]) as server, pool(server, "plain") as target:
        result = attempt(target)
        failed = failure_of(errors.NewConnectionError(None, "of something else"), result.watch)
        assert failed.stage is Stage.SENT
        assert not failed.reused


def test_reused_comes_from_the_watch():
    with FaultServer([Answer(200), Close("request")]) as server, pool(server, "plain") as target:
        attempt(target)
        result = attempt(target)
        assert failure_of(result.error, result.watch).reused


# How often


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (unresolved(socket.EAI_AGAIN), None),
        (caused(unresolved(socket.EAI_NONAME), socket.gaierror(socket.EAI_NONAME, "text")), 1),
        (caused(unresolved(socket.EAI_AGAIN), socket.gaierror(socket.EAI_AGAIN, "text")), None),
        (ValueError("Invalid header value"), 0),
        (errors.LocationParseError("host"), 0),
        (errors.InvalidHeader("Content-Length contained multiple unmatching values"), 0),
        (errors.UnrewindableBodyError("no tell"), 0),
        (errors.ClosedPoolError(None, "closed"), 0),
        (errors.EmptyPoolError(None, "empty"), None),
        (http.client.InvalidURL("port"), 0),
        (errors.SSLError('Fingerprints did not match. Expected "a", got "b"'), 0),
        (errors.SSLError(ssl.SSLEOFError(8, "EOF")), None),
        (errors.SSLError(alert("TLSV1_ALERT_INTERNAL_ERROR")), None),
        (requests.exceptions.InvalidURL("url"), 0),
        (requests.exceptions.InvalidHeader("header"), 0),
        (requests.exceptions.ReadTimeout("timed out"), None),
        (errors.NewConnectionError(None, "refused"), None),
        (ConnectionResetError(), None),
    ],
)
def test_what_is_worth_repeating(error, limit):
    assert failure_of(error, None).retry_limit == limit


@pytest.mark.parametrize("version", [None, "1.2"])
def test_a_refused_client_certificate_is_permanent(version):
    with (
        FaultServer([Handshake(client_certificate=True, version=version)], tls=True) as server,
        pool(server, "tls") as target,
    ):
        result = attempt(target)
        failed = failure_of(result.error, result.watch)
        assert not server.settle().requests
    reasons = [e for e in (result.error, *result.error.args) if isinstance(e, ssl.SSLError)]
    if reasons and "CERTIFICATE_REQUIRED" in (reasons[0].reason or ""):  # else a bare reset was faster
        assert failed.retry_limit == 0
    if version is None:
        assert failed.stage in (Stage.SENT, Stage.BODY_UNFINISHED)  # TLS 1.3: the alert comes after the client is done


def test_alerts_about_the_clients_certificate():
    for reason in ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_BAD_CERTIFICATE", "TLSV1_ALERT_UNKNOWN_CA"):
        assert failure_of(errors.SSLError(alert(reason)), None).retry_limit == 0


def test_errors_that_contain_each_other_end():
    first, second = Exception(), Exception()
    first.args, second.args = (second,), (first,)
    first.__cause__ = first
    assert failure_of(first, None).stage is Stage.UNOBSERVED


POOL: Any = urllib3.HTTPConnectionPool("127.0.0.1")


@pytest.mark.parametrize(
    "error",
    [
        errors.ConnectTimeoutError(),
        errors.NewConnectionError(POOL, "refused"),
        errors.ProxyError("proxy", errors.ConnectTimeoutError()),
        errors.ProxyError("proxy", OSError()),
        errors.ReadTimeoutError(POOL, "/", "late"),
        errors.ProtocolError("cut off"),
        errors.SSLError("no"),
    ],
)
def test_an_error_is_of_the_kind_that_urllib3_counts_it_as(error: Exception) -> None:
    """Which counter of a Retry goes down, as urllib3's own `increment` has it."""
    before = urllib3.Retry(connect=5, read=5, other=5)
    after = before.increment("GET", "/", error=error)
    [kind] = [name for name in ("connect", "read", "other") if getattr(after, name) < getattr(before, name)]
    for raised in (error, errors.MaxRetryError(POOL, "/", error)):
        found = failure_of(raised, None)
        assert (found.counter, found.error) == (kind, raised)


def test_what_urllib3_does_not_repeat_and_what_is_not_its_own() -> None:
    assert failure_of(errors.LocationValueError("no host"), None).counter == "none"
    assert failure_of(OSError(), None).counter is None
    assert failure_of(errors.MaxRetryError(POOL, "/"), None).counter is None
