# SPDX-License-Identifier: Apache-2.0
"""Summaries of web server access logs."""

from .parse import Request, parse_line, read_log
from .report import render
from .summary import Summary, percentile

__all__ = ["Request", "Summary", "parse_line", "percentile", "read_log", "render"]
