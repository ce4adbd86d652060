"""What HTTPAdapter works out of a URL, remembered: doing that for every request costs more than all that we add."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from requests.adapters import HTTPAdapter


class Pools:
    """The pools of one adapter, by what chooses them, and the targets of its requests, by URL.

    Only where nothing else has a say: no proxy, no client certificate, no method of a subclass. And only as many pools
    as the pool manager keeps, since it drops the one that was not asked for longest.
    """

    def __init__(self, adapter: HTTPAdapter) -> None:
        self._adapter = adapter
        self.targets: dict[str, str] = {}  # those that are known
        # Weak: a pool that its manager has dropped is closed when nobody uses it any more.
        self._known: dict[tuple[str, Any], weakref.ref[Any]] = {}
        self._manager: Any = None
        self._options: dict[str, Any] = {}
        self._usable = False

    def get(self, request: Any, verify: Any, proxies: Any, cert: Any, find: Callable[..., Any]) -> Any:
        """The pool for a request; `find` is HTTPAdapter's own way to it."""
        manager = self._adapter.poolmanager
        if manager is not self._manager or manager.connection_pool_kw != self._options:
            self._begin(manager, find)
        if proxies or cert is not None or not self._usable:
            return find(request, verify, proxies=proxies, cert=cert)
        url = request.url or ""
        key = url[: url.find("/", 8)], verify  # scheme and authority: the first slash behind "https://"
        known = self._known.get(key)
        pool = None if known is None else known()
        if pool is None or pool.pool is None:  # never seen, dropped or closed
            pool = find(request, verify, proxies=proxies, cert=cert)
            if known is None and len(self._known) >= self._adapter._pool_connections:
                self._usable = False
            else:
                self._known[key] = weakref.ref(pool)
        return pool

    def target(self, request: Any, proxies: Any, find: Callable[..., str]) -> str:
        """The request's URL as it goes on the wire, if not known yet; `find` is HTTPAdapter's own way to it."""
        if proxies or getattr(find, "__func__", None) is not _TARGET:
            return find(request, proxies)
        if len(self.targets) >= 256:
            self.targets.clear()
        target = self.targets[request.url] = find(request, proxies)
        return target

    def _begin(self, manager: Any, find: Callable[..., Any]) -> None:
        self._known = {}
        self._manager, self._options = manager, dict(manager.connection_pool_kw)
        found_by = getattr(find, "__func__", None)
        chosen_by = getattr(self._adapter.build_connection_pool_key_attributes, "__func__", None)
        self._usable = found_by is _FIND and chosen_by is _CHOOSE


_FIND = HTTPAdapter.get_connection_with_tls_context
_TARGET = HTTPAdapter.request_url
_CHOOSE = HTTPAdapter.build_connection_pool_key_attributes
