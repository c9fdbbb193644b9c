"""Durations in buckets of 0.8 %: a few hundred numbers a function instead of all its calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Seven bits behind the leading one.
_STEPS: Final = 128
BUCKETS: Final = 64 * _STEPS


def bucket_of(durations: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of each duration, below `BUCKETS`; they rise with the durations."""
    fraction, exponent = np.frexp(durations.astype(np.float64))
    step = ((fraction - 0.5) * 2 * _STEPS).astype(np.int64)
    return np.where(durations > 0, exponent.astype(np.int64) * _STEPS + step, 0)


def upper_edge(bucket: int) -> int:
    """No duration of the bucket is longer, in nanoseconds."""
    exponent, step = divmod(bucket + 1, _STEPS)
    return int((0.5 + step / (2 * _STEPS)) * 2.0**exponent)


def quantile(counts: Mapping[int, int], share: float) -> int:
    """So large a share of all took no longer (to 0.8 %), in nanoseconds; 0 where there is none.

    Args:
        counts: Durations by bucket.
        share: From 0 to 1.
    """
    left = share * sum(counts.values())
    for bucket in sorted(counts):
        left -= counts[bucket]
        if left <= 0:
            # The upper end of the bucket, so that the claim holds.
            return upper_edge(bucket)
    return 0
