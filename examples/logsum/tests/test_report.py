# SPDX-License-Identifier: Apache-2.0
"""The report and the command line, on the sample log."""

import contextlib
import io
import os
import tempfile
import unittest

from logsum.__main__ import main
from logsum.report import size, table

SAMPLE = os.path.join(os.path.dirname(__file__), "..", "samples", "access.log")


class Pieces(unittest.TestCase):
    def test_sizes(self):
        self.assertEqual([size(n) for n in (0, 1023, 1024, 1536, 1 << 20, 1 << 40)],
                         ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1024.0 GiB"])

    def test_table_escapes_and_aligns(self):
        self.assertEqual(table(["a", "n"], [("x|y", 1)]), ["| a | n |", "| --- | ---: |", "| x\\|y | 1 |"])


class CommandLine(unittest.TestCase):
    def run_main(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(arguments))
        return code, out.getvalue(), err.getvalue()

    def test_sample_report(self):
        code, out, _ = self.run_main(SAMPLE)
        self.assertEqual(code, 0)
        for part in ("# Access log", "## By hour (UTC)", "| /search |", "3 lines that are not log lines"):
            self.assertIn(part, out)

    def test_report_file_is_replaced_whole(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "R.md")
            with open(path, "w", encoding="utf-8") as old:
                old.write("old")
            code, out, _ = self.run_main(SAMPLE, "--report", path)
            self.assertEqual(code, 0)
            self.assertIn("requests summarised", out)
            with open(path, encoding="utf-8") as new:
                self.assertEqual(new.read(), self.run_main(SAMPLE)[1])
            self.assertEqual(os.listdir(directory), ["R.md"])

    def test_bad_logs(self):
        with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
            log.write("junk\n")
            log.flush()
            code, _, err = self.run_main(log.name)
        self.assertEqual(code, 1)
        self.assertIn("holds no request (1 other lines)", err)
        code, _, err = self.run_main("/nonexistent.log")
        self.assertEqual(code, 1)
        self.assertIn("cannot read /nonexistent.log", err)
