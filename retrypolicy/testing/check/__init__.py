"""check_policy: a model world in which a policy shows whether it keeps the laws of retrying. Needs hypothesis.

The world is made of the real engine, the real ledger and virtual time; what the model's server acted on is the truth.
"""

from __future__ import annotations

from retrypolicy.testing.check.findings import Finding, PolicyFindings, PolicyReport
from retrypolicy.testing.check.search import find_scenario as _needs_hypothesis  # noqa: F401 - says so where it lacks

from retrypolicy.testing.check.checking import NAMES, check_policy  # isort: skip

__all__ = ["NAMES", "Finding", "PolicyFindings", "PolicyReport", "check_policy"]
