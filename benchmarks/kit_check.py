"""What a check of a policy costs: seconds for the default settings, and steps of the model in a second.

Wall time, once for each policy: hypothesis and the model's engine take all of it.
"""

from __future__ import annotations

import warnings

from urllib3.util import Retry

from retrypolicy import WEB, WORKER, RetryPolicy
from retrypolicy.errors import DuplicateRisk
from retrypolicy.http.methods import IDEMPOTENT
from retrypolicy.requests import from_urllib3
from retrypolicy.testing import check_policy


def main() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DuplicateRisk)
        converted = from_urllib3(Retry(total=3, allowed_methods=None, status_forcelist=[429, 500, 502, 503, 504]))
    policies = {
        "default": RetryPolicy(),
        "web": WEB,
        "worker": WORKER,
        "from_urllib3": converted,
        "post_is_idempotent": RetryPolicy(idempotent_methods=IDEMPOTENT | {"POST"}),
        "four_faults": RetryPolicy(
            idempotent_methods=IDEMPOTENT | {"POST"}, refusal_statuses={429, 500}, pushback="ignore", total_timeout=3e5
        ),
    }
    print("check_policy with default settings (bounds: 10 s, 1,000 steps a second)")
    for name, policy in policies.items():
        for provider in (None, "resend"):
            report = check_policy(policy, provider, raises=False)
            label = f"{name}{' with ' + provider if provider else ''}"
            print(
                f"  {label:32} {report.seconds:5.2f} s  {report.plays:5} plays  {report.steps:6} steps"
                f"  {report.steps / report.seconds:7.0f} steps/s  {len(report.findings)} found"
            )


if __name__ == "__main__":
    main()
