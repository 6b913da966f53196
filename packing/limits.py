"""What a reader believes of a file before it spends time or memory on it."""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on everything that is derived from a file; a caller that knows its file may raise any (`at_most`).

    Two kinds of bytes are bounded in two ways, by a number and by a share of the file: a file of a few hundred bytes
    that asks for gigabytes is refused, a large network is not.

    Attributes:
        header_bytes: of the inflated header.
        nodes: operations.
        name_length: characters of a name.
        decoded_bytes: of all arrays (four a weight and float, two an integer): at most this, and at most
            `decoded_free` plus `decoded_ratio` times the file.
        batch: images per call that activations are counted for.
        activation_bytes: of the largest set of activations that are alive at once, times `batch`: at most this, and at
            most `activation_free` plus `activation_ratio` times the file and the batch.
        macs: multiply-accumulates of one image.
    """

    header_bytes: int = 1 << 20
    nodes: int = 10_000
    name_length: int = 200
    decoded_bytes: int = 1 << 30
    decoded_free: int = 8 << 20
    decoded_ratio: int = 4096
    batch: int = 256
    activation_bytes: int = 32 << 30
    activation_free: int = 2 << 30
    activation_ratio: int = 128
    macs: int = 1 << 40

    def decoded(self, file_bytes: int) -> int:
        """Most bytes of arrays that a file of this size may hold."""
        return min(self.decoded_bytes, self.decoded_free + self.decoded_ratio * file_bytes)

    def activations(self, file_bytes: int) -> int:
        """Most bytes of activations of a batch that a file of this size may ask for."""
        return min(self.activation_bytes, self.activation_free + self.activation_ratio * file_bytes * self.batch)

    @classmethod
    def at_most(
        cls, header_mb: float | None = None, decoded_mb: float | None = None, activation_mb: float | None = None
    ) -> Limits:
        """The default, but for bounds in millions of bytes that hold whatever the size of the file."""
        named = {("header_bytes",): header_mb, ("decoded_bytes", "decoded_free"): decoded_mb}
        named[("activation_bytes", "activation_free")] = activation_mb
        return cls(**{name: int(1e6 * mb) for names, mb in named.items() if mb is not None for name in names})


DEFAULT = Limits()
OWN = Limits.at_most(header_mb=1e6, decoded_mb=1e6, activation_mb=1e6)
"""For a file that the same process has just written."""


def allow_more(option: str, count: float | None = None) -> str:
    """Which options let the file through; `count`: bytes that are enough, where that is known."""
    value = "<MB>" if count is None else math.ceil(count / 1e6)
    tools = f"--{option.replace('_', '-')}={value} (sparsign.export, sparsign.packing)"
    return f"limits.{option}={value} (evaluate.py), {tools} or limits= of sparsign.load allows more"


def add_options(parser: ArgumentParser) -> None:
    """--header-mb, --decoded-mb and --activation-mb, for tools that read a packed file."""
    for name, what in (("header", "of its header"), ("decoded", "of its arrays"), ("activation", "of activations")):
        text = f"so many millions of bytes {what} are allowed whatever the size of the file; default: a share of it"
        parser.add_argument(f"--{name}-mb", type=float, metavar="MB", help=text)


def from_options(given: Namespace) -> Limits:
    """What `add_options` was given."""
    return Limits.at_most(given.header_mb, given.decoded_mb, given.activation_mb)
