"""Files from strangers: anything that is wrong is one PackedFileError, before it costs time or memory."""

import math
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from tiny_nets import quantised
from torch import nn

from benchmarks.hostile.bombs import bombs, chain
from benchmarks.hostile.files import join, outcome, split
from benchmarks.hostile.fuzz import KINDS, fuzz, seeds
from sparsign import load
from sparsign.configs.evaluation import register
from sparsign.evaluate import measured
from sparsign.export.__main__ import main as export_tool
from sparsign.packing.__main__ import main
from sparsign.packing.codecs import inflate
from sparsign.packing.file import PackedFileError, dumps, loads, read, write
from sparsign.packing.limits import Limits
from sparsign.packing.spec import OPS
from sparsign.packing.trace import to_packed

CONFIGS = Path(__file__).parent.parent / "configs"


def refused(data, limits=None):
    with pytest.raises(PackedFileError) as caught:
        loads(data, limits or Limits())
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


def test_a_bounded_part_of_the_fuzzer_finds_nothing():
    """`python -m benchmarks.hostile fuzz` for minutes or hours is the same with more of it."""
    assert {node.op for seed in seeds() for node in loads(seed.data).nodes} == set(OPS)
    found, escaped = fuzz(seed=0, seconds=60, count=1000)
    assert not escaped
    assert {name.split()[0] for name in found} == set(KINDS) and sum(found.values()) == 1000
    assert found["header accepted"] and found["section accepted"]


def test_bombs_are_refused():
    for name, data in bombs().items():
        assert outcome(data).startswith("refused: "), name


def test_a_small_file_runs():
    assert loads(join(chain(["relu", "r"]))).shapes["f"] == (3,)


LONG = {"shape": [1] * 200_000, "codes": "fp32"}
HUGE = {"shape": [1 << 14, 1 << 14, 1, 1], "codes": "bf16"}
WIDE = {"shape": [1 << 14, 3, 128, 128], "rows": [1, []], "codes": "bf16"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (chain(["conv", "c", [], {}, {}, LONG]), "a shape of more than 4 sizes"),
        (chain(*[["relu", "r" * 300]] * 3), "a name is no text of up to 200"),
        (chain(*[["relu", str(k)] for k in range(20_000)]), "expected 1 to 10000 nodes"),
        (chain(["relu", "x"]), "its name is taken"),
        (chain(["conv", "c", [], {}, {}, HUGE]), r"asks for more than 8\d+ bytes of arrays"),
        (chain(["conv", "c", [], {}, {}, WIDE], streams=[["mixing", 0], []]), "bytes of arrays"),
        (chain(["conv", "c", [], {}, {}, {"shape": [0, 1 << 30, 1, 1], "codes": "bf16"}]), "weight of shape"),
        (chain(pools=[["fp32", "raw", 4, 1 << 30]]), "bytes of arrays"),
        (chain(["upsample", "u", [], {"factor": [128, 128]}]), "bytes of activations at batch 256"),
        (chain(*[["cat", f"c{k}", [1, 1]] for k in range(30)]), "too large|activations"),
        (chain(inputs=[3, 1 << 12, 1 << 12]), "bytes of activations at batch 256"),
        (chain(inputs=[3, 1 << 20, 1]), "input shape"),
        (chain(inputs=[3, 32]), "input shape"),
        (chain(meta={"original": {"dropped": [["gone", [1 << 30, 1 << 30], True]]}}), "bytes of arrays"),
        (chain(["warp", "w"]), "this version does not know the operation 'warp'"),
        (chain(["linear", "l", [], {}, {}, {"shape": [1, 1], "layout": "circulant"}]), "the layout 'circulant'"),
        (chain(pools=[["fp8", "raw", 1, 1]]), "the precision 'fp8'"),
        (chain(pools=[["fp32", "raw", 4, 1]]), "a section of 4 bytes goes beyond the file's end"),
        (chain(streams=[["mixing", 0], []]), "a stream without arrays"),
        ([1], "the header is no such object"),
        ({"nodes": []}, "the header is no such object"),
    ],
)
def test_what_asks_for_too_much_is_refused_by_its_name(header, message):
    found = refused(join(header))
    assert re.search(message, found), found


TOO_MUCH = {
    "limits.activation_mb": join(chain(["upsample", "u", [], {"factor": [64, 64]}])),
    "limits.decoded_mb": join(
        chain(["conv", "c", [], {}, {}, {"shape": [1, 3, 999, 999], "codes": "fp32"}], inputs=(3, 999, 999))
    ),
    "limits.header_mb": join(chain(meta={"model": {"options": {"x": "x" * (1 << 20)}}})),
}


@pytest.mark.parametrize("option", TOO_MUCH)
def test_the_option_that_a_refusal_names_lets_the_file_through(option, tmp_path):
    path = tmp_path / "large.sparsign"
    path.write_bytes(TOO_MUCH[option])
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        register()
        with pytest.raises(PackedFileError, match=rf"{option}=\S+ \(evaluate.py\).* allows more") as caught:
            measured(compose("evaluate", ["output=."]), path, path)
        value = re.search(rf"{option}=(\S+)", str(caught.value))[1].replace("<MB>", "12")
        with pytest.raises(ValueError, match=r"the packed file's data set|pool of"):
            measured(compose("evaluate", ["output=.", f"{option}={value}"]), path, path)


def test_the_tools_let_a_large_file_through_when_they_are_told_to(tmp_path, capsys):
    path, limits = tmp_path / "large.sparsign", Limits.at_most(decoded_mb=20)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 2)).eval()
    with torch.no_grad():
        net[1].weight[9:], net[1].bias[9:], net[1].weight[:, 9:] = 0, 0, 0
    write(to_packed(net, lambda layer: None, (2, 32, 32)), path)
    with pytest.raises(PackedFileError, match=r"--decoded-mb=\S+ \(sparsign.export, sparsign.packing\) or limits="):
        load(path)
    assert load(path, "reference", limits=limits).input_shape == (2, 32, 32)
    assert main([str(path)]) == 1 and "--decoded-mb" in capsys.readouterr().err
    assert main([str(path), "--decoded-mb=20"]) == 0
    to_c = [str(path), "--to", "c-header"]
    assert export_tool(to_c) == 1 and export_tool([*to_c, "--decoded-mb=20"]) == 0


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
    assert [line.split(":")[:2] for line in err.splitlines()] == [
        ["error", f" {bad}"],
        ["error", f" {tmp_path / 'none'}"],
    ]
