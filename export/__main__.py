"""Writes a packed file as a file of another tool, which then needs nothing of sparsign.

  python -m sparsign.export model.sparsign --to onnx                            # beside it: model.onnx
  python -m sparsign.export model.sparsign --to onnx --weights int2-dequantize  # where codes have one scale
  python -m sparsign.export model.sparsign --to torch --out net.pt2             # torch.export.load("net.pt2").module()
  python -m sparsign.export model.sparsign --to c-header --out net.h

Input: normalised fp32 images [N, C, H, W]; output: logits [N, classes]. Mean, standard deviation and class names stand
in the file's metadata where the packed file has them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from sparsign.export import FORMATS, Options, convert
from sparsign.packing.atomic import write_atomic
from sparsign.packing.file import read
from sparsign.packing.limits import add_options, from_options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for every other mistake."""
        raise ValueError(f"{message} (--help tells)")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser("sparsign.export", description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("file", type=Path, metavar="FILE", help="a packed file")
    formats = "; ".join(f"{name}: {kind.help}" for name, kind in FORMATS.items())
    parser.add_argument("--to", required=True, metavar="FORMAT", help=formats)
    parser.add_argument("--out", type=Path, metavar="PATH", help="FILE with the format's suffix if left out")
    codes = "ONNX weights: float, or the codes of coded layers and their scales in front of DequantizeLinear, with the "
    codes += "same numbers: int8-dequantize (opset 17), int4-dequantize (21), int2-dequantize (25: new runtimes only)"
    parser.add_argument("--weights", default="float", metavar="KIND", help=codes)
    skip = "write without loading and comparing first, for instance where onnxruntime is not installed"
    parser.add_argument("--no-check", action="store_true", help=skip)
    add_options(parser)
    return parser


def _export(arguments: list[str] | None) -> str:
    given = _parser().parse_args(arguments)
    packed = read(given.file, from_options(given))
    content = convert(packed, given.to, Options(given.weights, not given.no_check))
    out = given.out or given.file.with_suffix(FORMATS[given.to].suffix)
    if out.exists() and out.samefile(given.file):
        raise ValueError(f"--out {out}: is the packed file itself")
    try:
        write_atomic(out, content.data)
    except OSError as error:
        raise ValueError(f"--out {out}: {error.strerror}") from None
    sizes = f"{len(content.data):,} bytes beside the packed file's {sum(packed.bytes_on_disk.values()):,}"
    return f"{out}: {sizes}; {content.note}"


def main(arguments: list[str] | None = None) -> int:
    """Writes one file and prints a line about it; 1 and one line on stderr where that failed."""
    try:
        print(_export(arguments))
    except ModuleNotFoundError as error:
        advice = "pip install 'sparsign[export]'" + (", or --no-check" if error.name == "onnxruntime" else "")
        print(f"error: {error.name} is not installed: {advice}", file=sys.stderr)
    except (ValueError, OSError, ImportError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
