"""`python -m sparsign.export`: a file is written whole, or one line says what is wrong and nothing is."""

import sys
from pathlib import Path

import onnx
import pytest
from exported import nets

from sparsign import export
from sparsign.export import FORMATS, onnx_ops
from sparsign.export.__main__ import main
from sparsign.packing.file import write

packed = pytest.fixture(nets, scope="module")


@pytest.fixture
def file(packed, tmp_path):
    write(packed["pair"], tmp_path / "net.sparsign")
    return tmp_path / "net.sparsign"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.sparsign", "--to", "onnx"], "none.sparsign: no such packed model"),
        (["damaged.sparsign", "--to", "onnx"], "damaged or cut short"),
        (["other.onnx", "--to", "torch"], "not a packed model"),
        (["net.sparsign", "--to", "tflite"], "--to tflite: expected one of onnx, torch, safetensors, c-header"),
        (["net.sparsign"], "the following arguments are required: --to"),
        (["net.sparsign", "--to", "onnx", "--opset", "9"], "unrecognized arguments: --opset 9"),
        (["net.sparsign", "--to", "onnx", "--weights", "int3"], "--weights int3: expected one of float, int8-dequ"),
        (["net.sparsign", "--to", "onnx", "--weights", "int8-dequantize"], "layer 2: its values (sign_pair)"),
        (["net.sparsign", "--to", "torch", "--weights", "int8-dequantize"], "only --to onnx has a choice"),
        (
            ["net.sparsign", "--to", "c-header", "--out", "net.sparsign"],
            "--out net.sparsign: is the packed file itself",
        ),
        (["net.sparsign", "--to", "c-header", "--out", "other.onnx/net.h"], "--out other.onnx/net.h: Not a dir"),
        (["net.sparsign", "--to", "c-header", "--out", "folder"], "--out folder: Is a directory"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(file, arguments, said, capsys, monkeypatch):
    monkeypatch.chdir(file.parent)
    data = file.read_bytes()
    Path("damaged.sparsign").write_bytes(data[:-3] + b"\0\1\2")
    Path("other.onnx").write_bytes(b"\x08\x08\x12\x04some")
    Path("folder").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and said in err and len(err.splitlines()) == 1
    assert {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")} == before


def test_an_operation_without_a_spelling_is_named(file, capsys, monkeypatch):
    monkeypatch.delitem(onnx_ops.SPELLINGS, "maxpool")
    assert main([str(file), "--to", "onnx"]) == 1
    assert capsys.readouterr().err == "error: node '5': operation 'maxpool' has no ONNX spelling yet\n"
    assert not file.with_suffix(".onnx").exists()


def test_missing_packages_are_named_and_onnxruntime_can_be_done_without(file, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "sparsign.export.onnx_check", raising=False)
    monkeypatch.delattr(export, "onnx_check", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main([str(file), "--to", "onnx"]) == 1
    said = "error: onnxruntime is not installed: pip install 'sparsign[export]', or --no-check\n"
    assert capsys.readouterr().err == said and not file.with_suffix(".onnx").exists()
    assert main([str(file), "--to", "onnx", "--no-check"]) == 0
    assert "opset 17, weights float, not checked" in capsys.readouterr().out
    onnx.checker.check_model(file.with_suffix(".onnx").read_bytes())


def test_help_names_every_format(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"{name}: " in text for name in FORMATS) and "--to onnx --weights int2-dequantize" in text
