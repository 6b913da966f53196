"""Binary arithmetic coding and the adaptive probabilities that every coder here shares. Integers only.

An interval [low, high] of 32-bit numbers stands for all bits so far; each bit cuts it in proportion to its probability
and the bytes on which both ends agree are output. Encoder and decoder share one method, `code(bit, p1) -> bit`, so a
model is written once: the encoder takes the bit, the decoder ignores it and returns the one in the data.
"""

from __future__ import annotations

from typing import Protocol

_MASK = (1 << 32) - 1
HALF = 1 << 15
"""Probability 1/2 of `code`: bits without a model."""

SLOT_HALF = 1 << 31
"""A slot that has seen nothing: probability 1/2, count 0."""
LIMIT = 1023
"""A slot's largest count: from here on it forgets, one part in 1024.5 with each bit."""
RATE = [(1 << 17) // (2 * count + 3) for count in range(LIMIT + 1)]
"""65536 / (count + 1.5): what part of the error a slot takes over. The first bits make it a running mean."""


class Coder(Protocol):
    """What a model sees of the encoder and of the decoder."""

    def code(self, bit: int, p1: int) -> int:
        """Code one bit; p1 in 1 .. 65535 is 65536 times the probability that it is 1. Returns the bit."""


class Encoder:
    """Bits to bytes."""

    def __init__(self) -> None:
        self.low, self.high, self.out = 0, _MASK, bytearray()

    def code(self, bit: int, p1: int) -> int:
        """See `Coder.code`."""
        middle = self.low + ((self.high - self.low) * p1 >> 16)
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        while not (self.low ^ self.high) >> 24:
            self.out.append(self.high >> 24)
            self.low, self.high = self.low << 8 & _MASK, self.high << 8 & _MASK | 255
        return bit

    def finish(self) -> bytes:
        """The shortest data that, read with zeros behind them, lie in the interval."""
        return bytes(self.out) + _last_bytes(self.low, self.high)


class Decoder:
    """Bytes to bits. ValueError as soon as the bits need more bytes than there are: no damage makes it run on."""

    def __init__(self, data: bytes) -> None:
        self.low, self.high, self.data, self.passed = 0, _MASK, data, 0
        self.value = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def code(self, bit: int, p1: int) -> int:
        """See `Coder.code`; `bit` is ignored."""
        middle = self.low + ((self.high - self.low) * p1 >> 16)
        bit = int(self.value <= middle)
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        while not (self.low ^ self.high) >> 24:
            self.passed += 1
            if self.passed > len(self.data):
                raise ValueError(f"{len(self.data)} bytes of coded data end before their symbols")
            byte = self.data[self.passed + 3] if self.passed + 3 < len(self.data) else 0
            self.low, self.high = self.low << 8 & _MASK, self.high << 8 & _MASK | 255
            self.value = self.value << 8 & _MASK | byte
        return bit

    def finish(self) -> None:
        """ValueError unless the data are exactly what an encoder makes of the bits that were decoded."""
        if self.data[self.passed :] != _last_bytes(self.low, self.high):
            raise ValueError(f"{len(self.data)} bytes of coded data do not end where their symbols end")


def _last_bytes(low: int, high: int) -> bytes:
    """The fewest leading bytes of a 32-bit number in [low, high] whose other bytes are zero."""
    for kept in range(5):
        rest = _MASK >> 8 * kept
        number = (low + rest) & ~rest
        if number <= high:
            return number.to_bytes(5, "big")[1 : 1 + kept]
    raise AssertionError("low itself has four bytes")


def probability(slot: int) -> int:
    """A slot's probability of a 1 for `code`, 1 .. 65535."""
    return min(max(slot >> 16, 1), 65535)


def updated(slot: int, bit: int) -> int:
    """The slot after a bit: 22 bits of probability, then 10 bits of count."""
    p, count = slot >> 10, slot & LIMIT
    p += ((bit << 22) - bit - p) * RATE[count] >> 16
    return p << 10 | min(count + 1, LIMIT)
