# SPDX-License-Identifier: Apache-2.0
"""What a list of requests says: counts, times, errors. Pure: no files, no clock."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Dict, Iterable, List, Sequence, Tuple

from .parse import Request


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that `percent` of all values do not exceed."""
    if not values:
        raise ValueError("no values")
    if not 0 < percent <= 100:
        raise ValueError(f"percent is {percent}, must be above 0 and at most 100")
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[int(rank) - 1]


@dataclass(frozen=True)
class Summary:
    """The figures of a report."""

    requests: int
    rejected: int
    bytes_sent: int
    clients: int
    by_hour: List[Tuple[str, int, int]]
    slowest: List[Tuple[str, int, float, float]]
    errors: List[Tuple[str, int, int]]

    @classmethod
    def of(cls, requests: Iterable[Request], rejected: int = 0, top: int = 5) -> "Summary":
        """Summarises; `top` bounds the lists of paths."""
        requests = list(requests)
        hours: Dict[str, List[int]] = defaultdict(lambda: [0, 0])
        times: Dict[str, List[float]] = defaultdict(list)
        errors: Counter = Counter()
        for request in requests:
            hour = hours[request.time.strftime("%Y-%m-%d %H:00")]
            hour[0] += 1
            hour[1] += request.is_error
            if request.seconds is not None:
                times[request.path].append(request.seconds)
            if request.is_error:
                errors[(request.path, request.status)] += 1
        slow = [(path, len(t), percentile(t, 50), percentile(t, 95)) for path, t in times.items()]
        slow.sort(key=lambda row: (-row[3], row[0]))
        worst = sorted(errors.items(), key=lambda item: (-item[1], item[0]))
        return cls(
            requests=len(requests),
            rejected=rejected,
            bytes_sent=sum(request.size_bytes for request in requests),
            clients=len({request.client for request in requests}),
            by_hour=[(hour, *counts) for hour, counts in sorted(hours.items())],
            slowest=slow[:top],
            errors=[(path, status, count) for (path, status), count in worst[:top]],
        )
