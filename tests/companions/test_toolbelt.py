"""Beside requests-toolbelt: its adapters, in both shapes, and its bodies."""

from __future__ import annotations

import socket
import ssl
from typing import Any

import pytest
from requests.adapters import HTTPAdapter
from requests_toolbelt.adapters.host_header_ssl import HostHeaderSSLAdapter
from requests_toolbelt.adapters.socket_options import SocketOptionsAdapter, TCPKeepAliveAdapter
from requests_toolbelt.adapters.source import SourceAddressAdapter
from requests_toolbelt.adapters.ssl import SSLAdapter

from retrypolicy.requests import RetryAdapter
from tests.companions.laws import check_laws, opened_around, opened_with

NAGLE = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)]
ADAPTERS: list[tuple[type[HTTPAdapter], dict[str, Any]]] = [
    (HTTPAdapter, {}),
    (SourceAddressAdapter, {"source_address": "127.0.0.2"}),
    (SocketOptionsAdapter, {"socket_options": NAGLE}),
    (TCPKeepAliveAdapter, {"idle": 30}),
    (SSLAdapter, {"ssl_version": ssl.PROTOCOL_TLS_CLIENT}),
    (HostHeaderSSLAdapter, {}),
]


@pytest.mark.parametrize(("other", "own"), ADAPTERS, ids=lambda value: getattr(value, "__name__", ""))
def test_laws(other: type[HTTPAdapter], own: dict[str, Any]) -> None:
    both = type("Both", (RetryAdapter, other), {}) if other is not HTTPAdapter else RetryAdapter
    check_laws(opened_with(both, **own))
    # An adapter with a `send` of its own may do anything in there: only its pools could be watched, not what it means.
    check_laws(opened_around(lambda: other(**own)), watched="send" not in vars(other) or other is HTTPAdapter)
