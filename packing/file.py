"""One self-contained file per packed model, safe to load from a stranger.

Layout, little endian: magic `SPARSIGN`, version u16, header length u32, inflated header length u32, CRC-32 u32 of
everything else in the file; the header (JSON, deflated); the sections, back to back in the header's order. A section
is one array:

    ["f", codec, bytes, shape]            fp32 numbers, codec "raw" or "deflate"
    ["b", codec, bytes, n]                a set of indices below n, as n symbols of two levels
    ["c", codec, bytes, count, levels]    integers, as symbols that stand for the listed increasing levels

with the codecs of `packing.codecs` for "b" and "c". No pickle, nothing is executed; every length, shape and level is
checked before memory is taken for it. Weights of coded layers lie as a bitmap of nonzero kernels plus the codes of
those kernels, or as plain codes, whichever is shorter. Without a graph, the header's input is [] and its output null.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

from sparsign.packing.atomic import write_atomic
from sparsign.packing.codecs import EXPANSION, deflate, inflate
from sparsign.packing.reader import from_header
from sparsign.packing.spec import PackedModel
from sparsign.packing.writer import to_header

MAGIC = b"SPARSIGN"
VERSION = 1
PREAMBLE = struct.Struct("<8sHIII")
MAX_HEADER = 1 << 26


class PackedFileError(ValueError):
    """A file that is no packed model, or a damaged one."""


def write(packed: PackedModel, path: str | Path) -> int:
    """Write through a temporary file and a rename; returns the size in bytes. ValueError if `packed` is not valid."""
    packed.validate()
    data = dumps(packed)
    write_atomic(path, data)
    return len(data)


def read(path: str | Path) -> PackedModel:
    """The packed model in a file.

    Raises:
        FileNotFoundError: no such file.
        PackedFileError: anything wrong with its content, in one line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such packed model")
    try:
        return loads(path.read_bytes())
    except PackedFileError as error:
        raise PackedFileError(f"{path}: {error}") from None


def dumps(packed: PackedModel) -> bytes:
    """The file's bytes."""
    header, sections = to_header(packed)
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    deflated = deflate(text)
    head = PREAMBLE.pack(MAGIC, VERSION, len(deflated), len(text), 0)
    data = b"".join([head, deflated, *sections])
    return data[: PREAMBLE.size - 4] + struct.pack("<I", _checksum(data)) + data[PREAMBLE.size :]


def _checksum(data: bytes) -> int:
    return zlib.crc32(data[PREAMBLE.size :], zlib.crc32(data[: PREAMBLE.size - 4]))


def loads(data: bytes) -> PackedModel:
    """The packed model in a file's bytes. PackedFileError, in one line, for anything that is wrong with them."""
    try:
        return _loads(data)
    except PackedFileError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise PackedFileError(f"malformed packed model ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _loads(data: bytes) -> PackedModel:
    if len(data) < PREAMBLE.size or data[: len(MAGIC)] != MAGIC:
        raise PackedFileError(f"not a packed model: starts with {data[:8]!r}, expected {MAGIC!r} and a header")
    _, version, length, inflated, checksum = PREAMBLE.unpack_from(data)
    if version != VERSION:
        raise PackedFileError(f"version {version} of the format, expected {VERSION}")
    if length > len(data) - PREAMBLE.size or inflated > min(MAX_HEADER, length * EXPANSION):
        raise PackedFileError(f"a header of {length} bytes ({inflated} inflated) in a file of {len(data)} bytes")
    if checksum != _checksum(data):
        raise PackedFileError(f"damaged or cut short: checksum {_checksum(data):08x}, expected {checksum:08x}")
    end = PREAMBLE.size + length
    return from_header(json.loads(inflate(data[PREAMBLE.size : end], inflated)), memoryview(data)[end:])
