"""Candidates take turns, medians and ratios."""

import pytest
import torch

from sparsign.evaluation import latency


class FakeClock:
    """Of a machine where another process takes two seconds of every three: CPU time is a third of wall-clock."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def perf_counter(self):
        return self.now

    def process_time(self):
        return self.now / 3

    def candidate(self, name, seconds):
        def call(images):
            self.calls.append((name, len(images), torch.get_num_threads()))
            self.now += 3 * seconds * len(images)

        return latency.Candidate(name, "isa", call)


@pytest.fixture
def clock(monkeypatch):
    fake = FakeClock()
    monkeypatch.setattr(latency.time, "perf_counter", fake.perf_counter)
    monkeypatch.setattr(latency.time, "process_time", fake.process_time)
    return fake


def test_latency_rows_hold_medians_and_ratios(clock):
    timed = [clock.candidate("torch fp32", 0.008), clock.candidate("packed", 0.002)]
    rows = latency.measure(timed, (1, 2, 2), batches=[1, 3], threads=[1], seconds=1.0)
    found = [(r["engine"], r["batch"], round(r["milliseconds"], 6), round(r["ratio_to_torch_fp32"], 6)) for r in rows]
    assert found == [("torch fp32", 1, 8, 1), ("packed", 1, 2, 4), ("torch fp32", 3, 24, 1), ("packed", 3, 6, 4)]


def test_one_thread_is_measured_in_cpu_time_and_more_by_the_wall(clock, monkeypatch):
    monkeypatch.setattr(latency.os, "cpu_count", lambda: 2)
    timed = [clock.candidate("torch fp32", 0.008)]
    rows = latency.measure(timed, (1, 2, 2), threads=[1, 2], seconds=1.0)
    assert [(row["threads"], round(row["milliseconds"], 6)) for row in rows] == [(1, 8), (2, 24)]


def test_candidates_take_turns_and_threads_are_restored(clock):
    before = torch.get_num_threads()
    timed = [clock.candidate("a", 0.01), clock.candidate("b", 0.01)]
    latency.measure(timed, (1, 2, 2), batches=[1], threads=[1, 10_000], seconds=1.2)
    assert torch.get_num_threads() == before
    samples = [name for name, _, threads in clock.calls if threads == 1][4:]
    assert samples[:6] == ["a", "b"] * 3
    assert clock.now < 1.8


def test_slow_candidates_still_get_a_few_samples_and_no_budget_means_no_rows(clock):
    timed = [clock.candidate("a", 50.0)]
    assert latency.measure(timed, (1, 2, 2), seconds=1.0)[0]["samples"] == latency.MIN_SAMPLES
    assert latency.measure(timed, (1, 2, 2), seconds=0.0) == []
