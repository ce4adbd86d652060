"""A urllib3 pool of every kind, and one watched attempt on it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import urllib3
from attrs import define

from retrypolicy.testing import FaultServer
from retrypolicy.urllib3.wire import Watch, track, watching

KINDS = ("plain", "tls", "forward", "tunnel")
SMALL = b"x" * 100
LARGE = b"x" * 12_000_000  # more than two kernels' buffers hold


@define
class Attempt:
    watch: Watch
    response: urllib3.BaseHTTPResponse | None = None
    error: BaseException | None = None
    content: bytes | None = None
    body_error: BaseException | None = None


@contextlib.contextmanager
def pool(server: FaultServer, kind: str, **options: Any) -> Iterator[urllib3.HTTPConnectionPool]:
    """The pool for this server: direct, or behind the proxy that the server is too."""
    if kind == "tls":
        options["ca_certs"] = server.ca
    manager: urllib3.PoolManager
    if kind == "forward":
        manager, url = urllib3.ProxyManager(server.proxy_url, **options), "http://origin.test/"
    elif kind == "tunnel":
        manager, url = urllib3.ProxyManager(server.proxy_url, ca_certs=server.ca, **options), "https://origin.test/"
    else:
        manager, url = urllib3.PoolManager(**options), server.url()
    try:
        yield manager.connection_from_url(url)
    finally:
        manager.clear()


def attempt(
    target: urllib3.HTTPConnectionPool,
    *,
    watch: Watch | None = None,
    method: str = "POST",
    body: Any = SMALL,
    timeout: float | urllib3.Timeout | None = 5.0,
    **options: Any,
) -> Attempt:
    """One request under a watch; whatever it raises is kept."""
    result = Attempt(watch or Watch())
    assert track(target)
    url = "http://origin.test/" if target.proxy and target.scheme == "http" else "/"
    options = {"retries": False, "preload_content": False, "assert_same_host": False, **options}
    try:
        with watching(result.watch), warnings.catch_warnings():
            result.response = target.urlopen(method, url, body=body, timeout=timeout, **options)
    except BaseException as error:
        result.error = error
    else:
        try:
            result.content = result.response.read()
        except Exception as error:
            result.body_error = error
        result.response.release_conn()
    return result
