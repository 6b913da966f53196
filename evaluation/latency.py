"""Measured milliseconds of the packed engine against the uncompressed float network, in one process, in turns."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsign.evaluation.libraries import Int8
from sparsign.kernels.engine import Engine

Clock = Callable[[], float]
WARM_UP = 1
MIN_SAMPLES = 3
MAX_SAMPLES = 200
SHORTEST_SAMPLE = 2e-3
"""Seconds: a quicker call is repeated within a sample, so that the clock's grain does not count."""


@dataclass(frozen=True)
class Candidate:
    """Something to time: its name in the report, the instruction set it uses, and how it is called."""

    engine: str
    isa: str
    call: Callable[[Tensor], Tensor]
    channels_last: bool = False


def candidates(network: nn.Module | None, engine: Engine) -> list[Candidate]:
    """torch eager fp32 and bf16 autocast (channels_last) of the uncompressed network, OpenVINO's int8 where it is
    installed, and the packed engine.

    Without the uncompressed network (it is not in our registry) the packed engine alone.
    """
    isa = torch.backends.cpu.get_cpu_capability()
    packed = (f"{engine.name} (torch)", isa) if engine.isa == "torch" else (engine.name, engine.isa)
    if network is None:
        return [Candidate(*packed, engine)]
    network = network.eval().to(memory_format=torch.channels_last)

    def autocast(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(images)

    return [
        Candidate("torch fp32", isa, network, channels_last=True),
        Candidate("torch bf16", isa, autocast, channels_last=True),
        *([Candidate("OpenVINO int8", isa, Int8(network))] if Int8.installed() else []),
        Candidate(*packed, engine),
    ]


@torch.inference_mode()
def measure(
    candidates: Sequence[Candidate],
    image_shape: tuple[int, int, int],
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    seconds: float = 10.0,
) -> list[dict[str, Any]]:
    """One row per candidate, batch size and thread count; the first candidate is the baseline, if there are others.

    Candidates take turns sample by sample, so that a change of the machine's speed hits all of them alike, and one
    thread is measured in CPU time, which leaves out what other processes took; a row's
    `milliseconds` per batch is the median of its `samples`, `ratio_to_torch_fp32` says how many times faster than the
    first candidate that is (None for a candidate alone). `seconds` is the budget of the whole measurement, shared by
    the combinations; each gets at least a few samples. Thread counts above the machine's are cut to it. 0 seconds
    measure nothing.
    """
    if seconds <= 0:
        return []
    before = torch.get_num_threads()
    counts = list(dict.fromkeys(min(t, os.cpu_count() or 1) for t in threads))
    share = seconds / max(1, len(counts) * len(batches))
    rows = []
    try:
        for count in counts:
            torch.set_num_threads(count)
            for batch in batches:
                clock = time.process_time if count == 1 else time.perf_counter
                times = interleaved(candidates, torch.randn(batch, *image_shape), share, clock)
                rows += _rows(candidates, times, count, batch)
    finally:
        torch.set_num_threads(before)
    return rows


def interleaved(
    candidates: Sequence[Candidate], images: Tensor, seconds: float, clock: Clock | None = None
) -> list[list[float]]:
    """Seconds per call of every sample, by candidate; each is warmed up first, then they take turns.

    clock: wall-clock if None; for one thread `time.process_time`, which leaves out what other processes took.
    """
    calls, repeats = [], []
    for candidate in candidates:
        layout = torch.channels_last if candidate.channels_last else torch.contiguous_format
        calls.append((candidate.call, images.contiguous(memory_format=layout)))
        for _ in range(WARM_UP):
            candidate.call(calls[-1][1])
        repeats.append(max(1, round(SHORTEST_SAMPLE / max(_time(*calls[-1], 1), 1e-9))))
    start, times = time.perf_counter(), [[] for _ in candidates]
    for samples in range(MAX_SAMPLES):
        if samples >= MIN_SAMPLES and time.perf_counter() - start > seconds:
            break
        for k, (call, argument) in enumerate(calls):
            times[k].append(_time(call, argument, repeats[k], clock))
    return times


def _time(call: Callable[[Tensor], Tensor], images: Tensor, repeats: int, clock: Clock | None = None) -> float:
    clock = clock or time.perf_counter
    start = clock()
    for _ in range(repeats):
        call(images)
    return (clock() - start) / repeats


def _rows(candidates: Sequence[Candidate], times: list[list[float]], threads: int, batch: int) -> list[dict[str, Any]]:
    medians = [statistics.median(samples) for samples in times]
    return [
        {
            "engine": candidate.engine,
            "isa": candidate.isa,
            "threads": threads,
            "batch": batch,
            "milliseconds": 1e3 * median,
            "ratio_to_torch_fp32": medians[0] / median if len(medians) > 1 else None,
            "samples": len(samples),
        }
        for candidate, median, samples in zip(candidates, medians, times, strict=True)
    ]
