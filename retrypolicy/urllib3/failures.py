"""What a failed attempt proves: `Failed`, from the error and what was watched on the wire."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from typing import Literal

from urllib3 import exceptions as errors
from urllib3.util.ssl_match_hostname import CertificateError

from retrypolicy.outcome import Failed, Stage
from retrypolicy.urllib3.wire import Watch

# Raised before a byte of the request can have gone out, and nowhere else.
_NEVER_CONNECTED = (
    errors.NewConnectionError,  # a name that can't be resolved included
    errors.ConnectTimeoutError,
    errors.EmptyPoolError,
    errors.ClosedPoolError,
    errors.LocationValueError,
    ssl.SSLCertVerificationError,
    CertificateError,  # the certificate is for another name
)

# The same attempt would end the same way. ValueError is what urllib3, http.client and requests say of URLs, hosts and
# headers that can't be sent; a body that can't be rewound is of no use to a second attempt.
_PERMANENT = (
    ValueError,
    TypeError,
    http.client.InvalidURL,
    errors.InvalidHeader,  # a response with two different Content-Lengths
    errors.UnrewindableBodyError,
    errors.ClosedPoolError,
    ssl.SSLCertVerificationError,
)

# TLS alerts (RFC 8446 6.2) by which a server refuses our certificate, by OpenSSL's names. Under TLS 1.3 they come after
# the handshake, when the request is already out.
_CERTIFICATE_REFUSED = frozenset(
    {
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "TLSV1_ALERT_UNKNOWN_CA",
        "TLSV1_ALERT_ACCESS_DENIED",
        "TLSV1_CERTIFICATE_UNOBTAINABLE",
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_NO_CERTIFICATE",
    }
)

# EAI_AGAIN is the resolver's own trouble, and passes.
_NO_SUCH_NAME = {getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)}


def failure_of(error: BaseException, watch: Watch | None) -> Failed:
    """The outcome of an attempt that raised `error`. `watch` is None where the wire could not be watched.

    Without a watch's word the stage comes from the error's type, where a type alone proves that nothing was sent: name
    resolution, connecting, certificate verification. That needs a transport that makes one attempt: the last error of
    several says nothing about those before.
    """
    chain = tuple(_chain(error))
    if watch is not None and watch.observed:
        stage = watch.stage
    elif any(isinstance(e, _NEVER_CONNECTED) for e in chain):
        stage = Stage.NOT_CONNECTED
    else:
        stage = Stage.UNOBSERVED
    reused = watch is not None and watch.reused
    return Failed(error=error, stage=stage, retry_limit=_retry_limit(chain), reused=reused, counter=_counter(chain))


def _counter(chain: tuple[BaseException, ...]) -> Literal["connect", "read", "other", "none"] | None:
    """Which of its counters urllib3 would take this from (urllib3.util.Retry.increment); "none": it would not repeat.

    None where nothing of urllib3 is in the error: another transport's.
    """
    for error in chain:
        if isinstance(error, errors.ProxyError):
            return "connect" if isinstance(error.original_error, errors.ConnectTimeoutError) else "other"
        if isinstance(error, errors.ConnectTimeoutError):
            return "connect"
        if isinstance(error, (errors.ReadTimeoutError, errors.ProtocolError)):
            return "read"
        if isinstance(error, (errors.SSLError, ssl.SSLError)):
            return "other"
        if isinstance(error, errors.HTTPError) and not isinstance(error, errors.MaxRetryError):
            return "none"
    return None


def _retry_limit(chain: tuple[BaseException, ...]) -> int | None:
    for error in chain:
        if isinstance(error, _PERMANENT):
            return 0
        if isinstance(error, ssl.SSLError) and getattr(error, "reason", None) in _CERTIFICATE_REFUSED:
            return 0
        if isinstance(error, errors.SSLError) and "Fingerprints did not match" in str(error):
            return 0
        if isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME:
            return 1
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps: its arguments, urllib3's `reason`, its cause.

    Not its context: inside an `except` block of the caller that is the error being handled there, which may be of
    another call altogether (a fallback to a second host), and would prove the wrong thing.
    """
    seen: set[int] = set()
    todo: list[object] = [error]
    while todo:
        e = todo.pop(0)
        if isinstance(e, BaseException) and id(e) not in seen:
            seen.add(id(e))
            yield e
            todo += [*e.args, getattr(e, "reason", None), e.__cause__]
