# SPDX-License-Identifier: Apache-2.0
"""Log lines in, requests out. A line that is not one is counted, never guessed at."""

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Iterable, List, Optional, Tuple

LINE = re.compile(
    r'(?P<client>\S+) \S+ \S+ \[(?P<time>[^\]]+)\] '
    r'"(?P<method>[A-Z]+) (?P<target>\S+) (?P<version>HTTP/[0-9.]+)" '
    r'(?P<status>[1-5][0-9]{2}) (?P<size>[0-9]+|-)'
    r'(?: "(?:[^"\\]|\\.)*" "(?P<agent>(?:[^"\\]|\\.)*)")?'
    r'(?: (?P<seconds>[0-9]+\.[0-9]+))?'
)


@dataclass(frozen=True)
class Request:
    """One request as the server logged it."""

    client: str
    time: datetime
    method: str
    path: str
    status: int
    size_bytes: int
    seconds: Optional[float]

    @property
    def is_error(self) -> bool:
        """True for what the server answers for: 5xx."""
        return self.status >= 500


def parse_line(line: str) -> Optional[Request]:
    """The request on this line, or None when the whole line is not a log line."""
    found = LINE.fullmatch(line.rstrip("\r\n"))
    if found is None:
        return None
    try:
        time = datetime.strptime(found["time"], "%d/%b/%Y:%H:%M:%S %z").astimezone(timezone.utc)
    except ValueError:
        return None
    return Request(
        client=found["client"],
        time=time,
        method=found["method"],
        path=found["target"].split("?", 1)[0],
        status=int(found["status"]),
        size_bytes=0 if found["size"] == "-" else int(found["size"]),
        seconds=None if found["seconds"] is None else float(found["seconds"]),
    )


def read_log(lines: Iterable[str]) -> Tuple[List[Request], int]:
    """All requests in order of arrival, and how many lines were not log lines (blank ones are not counted)."""
    requests, rejected = [], 0
    for line in lines:
        if not line.strip():
            continue
        request = parse_line(line)
        if request is None:
            rejected += 1
        else:
            requests.append(request)
    return requests, rejected
