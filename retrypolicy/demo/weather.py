"""What goes wrong, and when: a pure function of seed, API, message and arrival, the same for every way of sending."""

from __future__ import annotations

import enum
import random
from itertools import accumulate


class Fault(enum.Enum):
    """What the API does with one request. The value says it in words."""

    NONE = "accepted and answered"
    KILL = "accepted, and the sender is killed before the answer"
    FIN = "accepted, then the connection was closed without an answer"
    RST = "accepted, then the connection was reset"
    LATE = "accepted, answered after the client's timeout"
    CUT = "accepted, the answer's body was cut off"
    GATEWAY = "accepted, and the gateway in front said 504"
    UNREAD = "not accepted: reset before it was read"
    BUSY = "not accepted: 503"
    BUSY_HINT = "not accepted: 503 with Retry-After"
    LIMIT = "not accepted: 429 with Retry-After"


REFUSALS = frozenset({Fault.UNREAD, Fault.BUSY, Fault.BUSY_HINT, Fault.LIMIT})
"""The faults after which nothing was accepted."""

# In percent of the first arrivals of a message; what is missing to 100 goes well.
FIRST = {
    Fault.FIN: 4, Fault.RST: 4, Fault.LATE: 6, Fault.CUT: 4, Fault.GATEWAY: 2,
    Fault.UNREAD: 3, Fault.BUSY: 4, Fault.BUSY_HINT: 2, Fault.LIMIT: 3,
}  # fmt: skip
CALMER = 3
"""From the second arrival on, faults are this many times rarer: the bad day passes."""


def fault(seed: int, api: str, message: int, arrival: int) -> Fault:
    """What happens to the request with which this message arrives for the n-th time (from 1)."""
    # A string seeds the generator through a hash that is the same in every process and version.
    point = random.Random(f"{seed}/{api}/{message}/{arrival}").random() * 100
    scale = 1 if arrival == 1 else CALMER
    for kind, upto in zip(FIRST, accumulate(FIRST.values()), strict=True):
        if point < upto / scale:
            return kind
    return Fault.NONE


def killed(messages: int) -> dict[str, int]:
    """For each API the message (from 1) at whose first arrival the sender is killed: halfway."""
    middle = messages // 2 + 1
    return {"mandrill": middle, "resend": min(middle + 1, messages)}
