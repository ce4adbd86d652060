"""Real workers of Channels on channels_redis, killed with what they have in memory; and a layer that repeats itself.

Ground truth is what the server got. Valkey has the layer's messages, as Redis would.
"""

from __future__ import annotations

import signal

import pytest

from retrypolicy.step import Settled, Wait

from ..guard.servers import new_valkey  # noqa: TID252 - no other path is sure
from .channels_town import KINDS, Town, town
from .workers import wait_for

__all__ = ["new_valkey", "town"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")]

MANY = 5


def test_workers_die_with_what_they_have_in_memory(town: Town) -> None:
    town.stalls = {f"{kind} 0" for kind in KINDS}
    town.send(*range(MANY))
    town.start()
    town.have_got(0)
    wait_for(lambda: town.in_layer == 0, "the way into the workers' memory")
    town.kill()
    town.start()
    town.send("last")
    town.have_got("last")
    found = town.counted(*range(MANY))
    print(f"\nbefore the sweep: {found}")
    assert found == {kind: [1, 0, 0, 0, 0] for kind in KINDS}
    wait_for(lambda: not isinstance(town.next_step("outbox 0"), Wait), "the end of the dead worker's lease")
    ends = town.sweep()
    assert sorted(end.__name__ for end in ends) == ["Held", *["Settled"] * 4]
    assert town.counted(*range(MANY))["outbox"] == [1, 1, 1, 1, 1]
    assert [(row.key, row.get_state_display()) for row in town.rows] == [("outbox 0", "held")]


def test_a_layer_that_delivers_twice_and_one_that_forgets(town: Town) -> None:
    town.start()
    town.send(*range(MANY), twice=True)
    town.send("last")
    town.have_got("last")
    found = town.counted(*range(MANY))
    print(f"\neach delivered twice: {found}")
    assert found == {"stock": [2] * 5, "ours": [1] * 5, "outbox": [1] * 5}
    assert town.sweep() == []
    town.kill()
    forgotten = range(MANY, 2 * MANY)
    town.send(*forgotten)
    town.valkey.client().flushall()
    assert town.sweep() == [Settled] * MANY
    assert town.counted(*forgotten) == {"stock": [0] * 5, "ours": [0] * 5, "outbox": [1] * 5}
