"""kill -9 of the sender at each point of a send: stock django-mailer with Anymail, and django-mailer under a policy.

Ground truth is what the server counted.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ..guard.servers import Postgres, postgres  # noqa: TID252 - no other path is sure
from .mailer_field import Field, postgresql, sqlite

__all__ = ["postgres"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")]

POINTS = ["before", "wire", "after", "deleted"]
PATIENCE = 30.0


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], dict[str, object]]:
    """Makes new ones."""
    if request.param == "sqlite":
        return partial(sqlite, tmp_path)
    server: Postgres = request.getfixturevalue("postgres")
    return partial(postgresql, server.folder)


def counted(field: Field) -> list[int]:
    return [field.accepted[point] for point in POINTS]


def test_where_senders_die(database: Callable[[], dict[str, object]], tmp_path: Path) -> None:
    with (
        Field(tmp_path / "stock", database(), stock=True) as stock,
        Field(tmp_path / "ours", database(), stock=False) as ours,
    ):
        for field in (stock, ours):
            assert field.shop.do("queue", *POINTS) == len(POINTS)
        for _ in POINTS:
            assert not stock.shop.send()
            assert stock.shop.send()  # the lock is still there: nothing is sent, and nobody is told
            stock.break_lock()
            assert not ours.shop.send()
            assert "removed a stale lock" in ours.shop.do("retry_due")
        assert stock.shop.send()
        assert stock.shop.do("rows") == []
        end = time.monotonic() + PATIENCE
        while ours.shop.do("rows") != [["wire", 4]] or ours.shop.do("held") != ["wire"]:
            assert time.monotonic() < end
            ours.shop.do("retry_due")
            assert ours.shop.send()
        print(f"\n{POINTS}: stock {counted(stock)}, ours {counted(ours)}")
        assert counted(stock) == [1, 2, 2, 2]
        assert counted(ours) == [1, 1, 1, 1]
        sent = [subject for subject, result in ours.shop.do("log") if result == "1"]
        assert sorted(sent) == ["after", "before", "deleted"]
