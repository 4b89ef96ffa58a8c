# SPDX-License-Identifier: Apache-2.0
"""A summary as Markdown. The same summary gives the same bytes."""

from typing import Iterable, List, Sequence

from .summary import Summary


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> List[str]:
    """A Markdown table; numbers are aligned to the right by their column's mark."""
    rows = [[str(cell) for cell in row] for row in rows]
    marks = ["---:" if rows and rows[0][i][:1].isdigit() and i > 0 else "---" for i in range(len(head))]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(marks) + " |"]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def size(count: int) -> str:
    """Bytes for people: 1536 is 1.5 KiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes everything")


def render(summary: Summary) -> str:
    """The whole report."""
    lines = ["# Access log", ""]
    lines.append(
        f"{summary.requests} requests by {summary.clients} clients, {size(summary.bytes_sent)} sent, "
        f"{summary.rejected} lines that are not log lines."
    )
    lines += ["", "## By hour (UTC)", ""]
    lines += table(["hour", "requests", "5xx"], summary.by_hour)
    lines += ["", "## Slowest paths", ""]
    rows = [(path, count, f"{p50:.3f}", f"{p95:.3f}") for path, count, p50, p95 in summary.slowest]
    lines += table(["path", "requests", "p50 s", "p95 s"], rows)
    lines += ["", "## Server errors", ""]
    lines += table(["path", "status", "requests"], summary.errors) if summary.errors else ["None."]
    return "\n".join(lines) + "\n"
