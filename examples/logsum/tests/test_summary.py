# SPDX-License-Identifier: Apache-2.0
"""Figures of known requests."""

import unittest
from datetime import datetime, timezone

from logsum import Request, Summary, percentile


def request(path="/", status=200, seconds=0.1, hour=9, client="192.0.2.1", size=100):
    time = datetime(2026, 3, 3, hour, 30, tzinfo=timezone.utc)
    return Request(client, time, "GET", path, status, size, seconds)


class Percentile(unittest.TestCase):
    def test_nearest_rank(self):
        values = [15, 20, 35, 40, 50]
        self.assertEqual([percentile(values, p) for p in (5, 30, 40, 50, 100)], [15, 20, 20, 35, 50])

    def test_one_value_is_every_percentile(self):
        self.assertEqual([percentile([7], p) for p in (1, 50, 95, 100)], [7, 7, 7, 7])

    def test_refuses_what_has_no_answer(self):
        for values, percent in (([], 50), ([1], 0), ([1], 101)):
            with self.assertRaises(ValueError):
                percentile(values, percent)


class Figures(unittest.TestCase):
    def test_empty(self):
        summary = Summary.of([], rejected=3)
        self.assertEqual((summary.requests, summary.rejected, summary.by_hour, summary.slowest), (0, 3, [], []))

    def test_hours_in_order_with_errors(self):
        summary = Summary.of([request(hour=10, status=500), request(hour=9), request(hour=10)])
        self.assertEqual(summary.by_hour, [("2026-03-03 09:00", 1, 0), ("2026-03-03 10:00", 2, 1)])

    def test_slowest_by_p95_then_by_name(self):
        requests = [request("/b", seconds=2.0), request("/a", seconds=2.0), request("/c", seconds=0.5)]
        self.assertEqual([row[0] for row in Summary.of(requests, top=2).slowest], ["/a", "/b"])

    def test_requests_without_duration_do_not_count_as_fast(self):
        self.assertEqual(Summary.of([request(seconds=None)]).slowest, [])

    def test_clients_and_bytes(self):
        summary = Summary.of([request(client="192.0.2.1"), request(client="192.0.2.2"), request(client="192.0.2.1")])
        self.assertEqual((summary.clients, summary.bytes_sent), (2, 300))

    def test_errors_by_count(self):
        requests = [request("/a", 502)] + [request("/b", 500)] * 2 + [request("/c", 404)]
        self.assertEqual(Summary.of(requests).errors, [("/b", 500, 2), ("/a", 502, 1)])
