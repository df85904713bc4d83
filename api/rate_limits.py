"""How fast one API key may ask: a token bucket per key in each process.

Headers after draft-ietf-httpapi-ratelimit-headers: `RateLimit-Policy` says the rule, `RateLimit`
what is left of it.
"""

import math
import threading
import time
from dataclasses import dataclass

from api.errors import Problem

_REMEMBERED = 10_000


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class RateLimiter:
    """`per_second` requests in the long run, `burst` at once; 0 per second does not limit."""

    def __init__(self, *, per_second: float, burst: int) -> None:
        self.per_second = per_second
        self.burst = burst
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key_id: str) -> dict[str, str]:
        """Count one request of a key; the headers that tell how many are left.

        Raises:
            Problem: 429, it is one too many now.
        """
        if not self.per_second:
            return {}
        now = time.monotonic()
        with self._lock:
            bucket = self._bucket(key_id, now)
            allowed = bucket.tokens >= 1
            bucket.tokens -= allowed
            left = bucket.tokens
        headers = self._headers(left)
        if allowed:
            return headers
        wait = max(1, math.ceil((1 - left) / self.per_second))
        raise Problem(
            "rate_limited",
            f"More than {self.per_second:g} requests a second; wait {wait} s.",
            retryable=True,
            headers={**headers, "Retry-After": str(wait)},
        )

    def _bucket(self, key_id: str, now: float) -> _Bucket:
        if len(self._buckets) >= _REMEMBERED:
            self._forget_full(now)
        bucket = self._buckets.setdefault(key_id, _Bucket(self.burst, now))
        grown = bucket.tokens + (now - bucket.filled_at) * self.per_second
        bucket.tokens, bucket.filled_at = min(grown, self.burst), now
        return bucket

    def _forget_full(self, now: float) -> None:
        full = self.burst / self.per_second
        for key_id in [k for k, b in self._buckets.items() if now - b.filled_at > full]:
            del self._buckets[key_id]

    def _headers(self, left: float) -> dict[str, str]:
        seconds = math.ceil(self.burst / self.per_second)
        reset = math.ceil((self.burst - left) / self.per_second)
        return {
            "RateLimit-Policy": f'"key";q={self.burst};w={seconds}',
            "RateLimit": f'"key";r={int(left)};t={reset}',
        }
