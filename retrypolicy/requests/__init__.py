"""For requests: an adapter that applies a policy."""

from retrypolicy.requests.adapter import RetryAdapter, mount
from retrypolicy.urllib3.convert import from_urllib3

__all__ = ["RetryAdapter", "from_urllib3", "mount"]
