# SPDX-License-Identifier: Apache-2.0
"""Lines that are log lines, and lines that are not."""

import unittest
from datetime import datetime, timezone

from logsum import parse_line, read_log

GOOD = '192.0.2.7 - ana [03/Mar/2026:23:59:58 +0100] "GET /cart?id=1 HTTP/1.1" 200 512 "-" "curl/8.5 \\"x\\"" 0.042'


class ParseLine(unittest.TestCase):
    def test_all_fields(self):
        request = parse_line(GOOD)
        self.assertEqual(request.client, "192.0.2.7")
        self.assertEqual(request.time, datetime(2026, 3, 3, 22, 59, 58, tzinfo=timezone.utc))
        self.assertEqual((request.method, request.path, request.status), ("GET", "/cart", 200))
        self.assertEqual((request.size_bytes, request.seconds), (512, 0.042))
        self.assertFalse(request.is_error)

    def test_common_format_has_no_duration(self):
        request = parse_line('192.0.2.7 - - [03/Mar/2026:10:00:00 +0000] "HEAD / HTTP/2.0" 304 -\r\n')
        self.assertIsNone(request.seconds)
        self.assertEqual(request.size_bytes, 0)

    def test_errors_are_the_servers(self):
        self.assertTrue(parse_line(GOOD.replace(" 200 ", " 503 ")).is_error)
        self.assertFalse(parse_line(GOOD.replace(" 200 ", " 404 ")).is_error)

    def test_not_log_lines(self):
        for line in (
            "",
            "hello",
            GOOD[:-20],
            GOOD + " trailing",
            GOOD.replace("03/Mar", "31/Feb"),
            GOOD.replace(" 200 ", " 999 "),
            GOOD.replace("GET", "get"),
            '192.0.2.9 - - [03/Mar/2026:10:00:00 +0000] "\\x16\\x03\\x01" 400 0 "-" "-" 0.000',
        ):
            self.assertIsNone(parse_line(line), line)

    def test_long_garbage_is_refused_quickly(self):
        self.assertIsNone(parse_line('192.0.2.7 - - [x] "GET ' + '\\"' * 50_000))


class ReadLog(unittest.TestCase):
    def test_counts_what_it_does_not_take(self):
        requests, rejected = read_log([GOOD + "\n", "\n", "junk\n", GOOD])
        self.assertEqual((len(requests), rejected), (2, 1))
