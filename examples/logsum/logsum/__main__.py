# SPDX-License-Identifier: Apache-2.0
"""The command line: python3 -m logsum LOG [--report FILE] [--top N]."""

import argparse
import os
import sys
import tempfile
from typing import List, Optional

from .parse import read_log
from .report import render
from .summary import Summary


def write_whole(path: str, text: str) -> None:
    """Replaces the file at once: a reader sees the old report or the new one, never half of one."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(os.path.abspath(path)), prefix=".report-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs the tool; the exit code is 0, or 1 when the log cannot be read or holds no request."""
    parser = argparse.ArgumentParser(prog="logsum", description="Summarise a web server's access log.")
    parser.add_argument("log", help="access log in combined format")
    parser.add_argument("--report", metavar="FILE", help="write the report there instead of to standard output")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="rows in the lists of paths (default: 5)")
    options = parser.parse_args(arguments)
    try:
        with open(options.log, encoding="utf-8", errors="replace") as lines:
            requests, rejected = read_log(lines)
    except OSError as error:
        print(f"logsum: cannot read {options.log}: {error.strerror}", file=sys.stderr)
        return 1
    if not requests:
        print(f"logsum: {options.log} holds no request ({rejected} other lines)", file=sys.stderr)
        return 1
    text = render(Summary.of(requests, rejected, options.top))
    if options.report:
        write_whole(options.report, text)
        print(f"{options.report}: {len(requests)} requests summarised")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
