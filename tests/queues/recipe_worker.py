"""`python -m tests.queues.recipe_worker MODULE ...`: a queue's own command, with waits that a test can wait for."""

from __future__ import annotations

import runpy
import sys

import retrypolicy
from retrypolicy import Guard, step
from retrypolicy.policy import PRESETS

if __name__ == "__main__":
    quick = retrypolicy.WORKER.with_(max_wait=0.1, total_timeout=10.0, attempt_timeout=5.0, guard=Guard(lease=1.0))
    retrypolicy.WORKER = PRESETS["worker"] = quick
    step.HELD_LOOK = (1.0, 3600.0)
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
