"""Files from strangers: anything that is wrong is one PackedFileError, before it costs time or memory."""

import importlib.util
import json
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import quantised, regular

from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.__main__ import main
from sparsign.packing.codecs import deflate, inflate
from sparsign.packing.dictionary import DICTIONARY
from sparsign.packing.file import MAGIC, PREAMBLE, PackedFileError, dumps, loads, read, write
from sparsign.packing.limits import Limits


def refused(data, limits=None):
    with pytest.raises(PackedFileError) as caught:
        loads(data, limits or Limits())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def split(data):
    _, _, _, length, inflated = PREAMBLE.unpack_from(data)
    end = PREAMBLE.size + length
    return json.loads(inflate(data[PREAMBLE.size : end], inflated, DICTIONARY)), data[end:]


def join(header, payload=b""):
    """A file with a right checksum around any header."""
    text = json.dumps(header, separators=(",", ":")).encode()
    deflated = deflate(text, DICTIONARY)
    head, tail = struct.pack("<8sH", MAGIC, 2), struct.pack("<II", len(deflated), len(text)) + deflated + payload
    return head + struct.pack("<I", zlib.crc32(tail, zlib.crc32(head))) + tail


def test_every_truncation_and_every_changed_byte_is_noticed(tmp_path):
    data = dumps(quantised("residual", 0))
    assert join(*split(data))[14:22] == data[14:22]
    for length in (*range(0, 40), *range(40, len(data), 37)):
        refused(data[:length])
    for place in (*range(0, 40), *range(40, len(data), 7)):
        refused(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
    refused(data + b"\0")
    assert "not a packed model" in refused(b"PK\3\4" + data)
    assert "version 258 of the format, expected 2: a newer sparsign reads it" in refused(data[:8] + b"\2\1" + data[10:])
    assert "version 1 of the format, expected 2: pack the run again" in refused(data[:8] + b"\1\0" + data[10:])
    assert "damaged or cut short" in refused(data[:-1])
    path = tmp_path / "bad.sps"
    path.write_bytes(data[:-1])
    with pytest.raises(PackedFileError, match=r"bad.sps: damaged"):
        read(path)


def test_inflation_stops_at_the_declared_size():
    bomb = zlib.compress(bytes(10**7), 9, -15)
    for data, size in ((bomb, 100), (bomb, 10**7 + 1), (bomb[:-3], 10**7), (bomb + b"x", 10**7), (b"\xff\xff", 3)):
        with pytest.raises(ValueError):
            inflate(data, size)


def places(value, path=()):
    """Every path into a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


HOSTILE = [
    *(None, True, -1, 0, 1, 2, 3, 7, 1 << 29, 1 << 31, 10**30, 1.5, math.nan),
    *("", "deflate", "mixing", "sign", "fp16", "dense", "groups", "row_scale", "os.system"),
    *([], [0], [[]], [1 << 20, 1 << 20], [0, 1 << 30], ["pack", 0], {}, {"shape": [1, 1]}, {"name": "digits"}),
]


FILES = [split(dumps(regular())), split(dumps(quantised("bireal", 0)))]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1), st.integers(0, 10**9), st.sampled_from(HOSTILE), st.binary(max_size=3))
def test_a_hostile_header_is_refused_or_valid(which, choice, value, more):
    """Any value anywhere in a well-checksummed header: a clean error, or a model that is valid and runs."""
    header, sections = json.loads(json.dumps(FILES[which][0])), FILES[which][1]
    paths = [path for path in places(header) if path]
    path = paths[choice % len(paths)]
    target = header
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    try:
        packed = loads(join(header, sections + (more if choice % 5 == 0 else b"")))
    except PackedFileError as error:
        assert "\n" not in str(error)
    else:
        if max(math.prod(shape) for shape in packed.validate().values()) < 1 << 20:
            ReferenceEngine(packed)(torch.zeros(1, *packed.input_shape))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_hostile_payload_is_refused_or_valid(which, edits):
    header, sections = FILES[which]
    data = bytearray(sections)
    for place, value in edits:
        data[place % len(data)] = value
    try:
        loads(join(header, bytes(data))).validate()
    except PackedFileError as error:
        assert "\n" not in str(error)


def test_a_bounded_part_of_the_fuzzer_finds_nothing():
    """`benchmarks/hostile.py fuzz` for minutes or hours is the same with more of it."""
    path = Path(__file__).parent.parent / "benchmarks" / "hostile.py"
    spec = importlib.util.spec_from_file_location("hostile", path)
    hostile = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hostile)
    found, escaped = hostile.fuzz(seed=0, seconds=60, count=800)
    assert not escaped
    assert sum(found.values()) == 800 and {name.split()[0] for name in found} == {
        "raw",
        "repaired",
        "header",
        "section",
    }
    for name, data in hostile.bombs().items():
        assert hostile.outcome(data).startswith("refused: "), name


def simple(*nodes, inputs=(3, 32, 32), meta=None, pools=(), streams=((), ())):
    records = [["input", "x"], *nodes, ["globalavgpool", "p"], ["flatten", "f"]]
    return {"input": inputs, "nodes": records, "meta": meta or {}, "pools": pools, "streams": streams}


def test_a_small_file_runs():
    assert loads(join(simple(["relu", "r"]))).shapes["f"] == (3,)


LONG = {"shape": [1] * 200_000, "codes": "fp32"}
HUGE = {"shape": [1 << 14, 1 << 14, 1, 1], "codes": "bf16"}
WIDE = {"shape": [1 << 14, 3, 128, 128], "rows": [1, []], "codes": "bf16"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (simple(["conv", "c", [], {}, {}, LONG]), "a shape of more than 4 sizes"),
        (simple(*[["relu", "r" * 300]] * 3), "a name is no text of up to 200"),
        (simple(*[["relu", str(k)] for k in range(20_000)]), "expected 1 to 10000 nodes"),
        (simple(["relu", "x"]), "its name is taken"),
        (simple(["conv", "c", [], {}, {}, HUGE]), r"asks for more than 8\d+ bytes of arrays"),
        (simple(["conv", "c", [], {}, {}, WIDE], streams=[["mixing", 0], []]), "bytes of arrays"),
        (simple(["conv", "c", [], {}, {}, {"shape": [0, 1 << 30, 1, 1], "codes": "bf16"}]), "weight of shape"),
        (simple(pools=[["fp32", "raw", 4, 1 << 30]]), "bytes of arrays"),
        (simple(["upsample", "u", [], {"factor": [128, 128]}]), "bytes of activations at batch 256"),
        (simple(*[["cat", f"c{k}", [1, 1]] for k in range(30)]), "too large|activations"),
        (simple(inputs=[3, 1 << 12, 1 << 12]), "bytes of activations at batch 256"),
        (simple(inputs=[3, 1 << 20, 1]), "input shape"),
        (simple(inputs=[3, 32]), "input shape"),
        (simple(meta={"original": {"dropped": [["gone", [1 << 30, 1 << 30], True]]}}), "bytes of arrays"),
        (simple(["warp", "w"]), "this version does not know the operation 'warp'"),
        (simple(["linear", "l", [], {}, {}, {"shape": [1, 1], "layout": "circulant"}]), "the layout 'circulant'"),
        (simple(pools=[["fp8", "raw", 1, 1]]), "the precision 'fp8'"),
        (simple(pools=[["fp32", "raw", 4, 1]]), "a section of 4 bytes goes beyond the file's end"),
        (simple(streams=[["mixing", 0], []]), "a stream without arrays"),
        ([1], "the header is no such object"),
        ({"nodes": []}, "the header is no such object"),
    ],
)
def test_what_asks_for_too_much_is_refused_by_its_name(header, message):
    found = refused(join(header))
    assert re.search(message, found), found


def test_a_caller_may_raise_the_limits():
    data = join(simple(["upsample", "u", [], {"factor": [64, 64]}]))
    refused(data)
    assert loads(data, Limits(activation_free=1 << 40, activation_bytes=1 << 40)).shapes["u"] == (3, 2048, 2048)


@pytest.mark.parametrize(
    "meta",
    [
        [],
        {"model": "resnet18"},
        {"model": {"_target_": "os.system"}},
        {"model": {"name": 3}},
        {"dataset": {"mean": [1, "2"]}},
        {"compressor": {"pfr": "half"}},
        {"proof": {"close": [1.5]}},
        {"seed": True},
        {"surprise": 1},
        {"original": []},
        {"original": {"parameters": "many"}},
        {"original": {"dropped": 3}},
        {"original": {"dropped": [["x", [3, None], True]]}},
        {"original": {"dropped": [["x", [3, 3, 3], True]]}},
        {"model": {"options": {"block": [1]}}},
    ],
)
def test_metadata_has_a_schema(meta):
    header, payload = split(dumps(quantised("chain", 0)))
    header["meta"] = meta
    assert "meta" in refused(join(header, payload))
    packed = quantised("chain", 0)
    packed.meta = meta
    with pytest.raises(ValueError, match="meta"):
        packed.validate()


def test_not_a_number_is_no_json():
    header, payload = split(dumps(quantised("chain", 0)))
    header["meta"]["accuracy"] = {"float_top1": math.nan}
    assert "NaN in the header" in refused(join(header, payload))


def test_leftover_bytes_and_numbers_are_noticed():
    header, payload = split(dumps(quantised("chain", 0)))
    assert "2 bytes after the last section" in refused(join(header, payload + b"xx"))
    del header["nodes"][1][4]["bias"]
    assert "more numbers of" in refused(join(header, payload))


def test_what_is_in_the_file_is_what_was_written():
    packed = quantised("residual", 0)
    packed.meta |= {"model": {"name": "é"}, "accuracy": {"float_top1": 0.125}}
    assert loads(dumps(packed)).meta == packed.meta
    assert np.array_equal(loads(dumps(packed)).layers()["fc"].codes.codes, packed.layers()["fc"].codes.codes)


def test_the_table_of_a_file_says_what_was_cut_and_adds_up(tmp_path, capsys):
    good, bad = tmp_path / "good.sparsign", tmp_path / "bad.sparsign"
    size = write(quantised("residual", 0), good)
    bad.write_bytes(good.read_bytes()[:-1])
    assert main([str(bad), str(good), str(tmp_path / "none")]) == 1
    out, err = capsys.readouterr()
    lines = {line.split()[0]: line.split() for line in out.splitlines()[1:]}
    for name, node in read(good).layers().items():
        assert lines[name][1:3] == ["x".join(map(str, shape)) for shape in (node.codes.full_shape, node.codes.shape)]
        density = np.count_nonzero(node.codes.weight()) / np.prod(node.codes.full_shape)
        assert lines[name][3] == f"{density:.2%}"
    assert lines["all"][-1].replace(",", "") == str(size) == str(good.stat().st_size)
    assert lines["crc32"][1] == f"{zlib.crc32(good.read_bytes()):08x}"
    assert [line.split(":")[0] for line in err.splitlines()] == [str(bad), str(tmp_path / "none")]
