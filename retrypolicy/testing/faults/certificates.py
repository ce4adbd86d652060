"""Certificates for a fault server: good ones, and ones that a client must not accept."""

from __future__ import annotations

import datetime as dt
import functools
import ssl
from typing import TYPE_CHECKING

from retrypolicy.testing.faults.steps import Certificate, Handshake

if TYPE_CHECKING:
    from trustme import CA, LeafCert

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Authority:
    """Two certificate authorities: one that clients are told to trust, and one that they aren't."""

    def __init__(self) -> None:
        self.trusted = _new_authority()

    @functools.cached_property
    def _stranger(self) -> CA:
        return _new_authority()

    @functools.cache  # noqa: B019  # there is one authority per process
    def context(self, handshake: Handshake, host: str) -> ssl.SSLContext:
        """The server's side of such a handshake, for a client that wants to reach that host."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._leaf(handshake.certificate, host).configure_cert(context)
        if handshake.version:
            context.minimum_version = context.maximum_version = _VERSIONS[handshake.version]
        if handshake.client_certificate:
            context.verify_mode = ssl.CERT_REQUIRED
            self.trusted.configure_trust(context)
        return context

    def _leaf(self, certificate: Certificate, host: str) -> LeafCert:
        if certificate == "untrusted":
            return self._stranger.issue_cert(host, "localhost")
        if certificate == "expired":
            return self.trusted.issue_cert(host, "localhost", not_after=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        if certificate == "wrong_host":
            return self.trusted.issue_cert("elsewhere.invalid")
        return self.trusted.issue_cert(host, "localhost")

    def client_pem(self) -> bytes:
        """A client's certificate with its key."""
        return self.trusted.issue_cert("client@example.org").private_key_and_cert_chain_pem.bytes()

    def ca_pem(self) -> bytes:
        return self.trusted.cert_pem.bytes()


@functools.cache
def authority() -> Authority:
    """The one of this process: making keys takes longer than most tests."""
    return Authority()


def _new_authority() -> CA:
    try:
        from trustme import CA
    except ImportError as error:
        raise ImportError("a fault server with TLS needs trustme: pip install 'retrypolicy[testing]'") from error
    return CA()
