"""Which of torchvision's classification networks go through: cut, packed, reloaded, equal.

    python benchmarks/architectures.py [--onnx] [NAME ...]

Every network has random weights and BN statistics; every third filter of each conv is zero, with its bias and what BN
makes of it. It went through when the file, read back, gives the logits of the uncut network within 1e-4 of the largest.
Columns: side of the image in pixels, weights before and after in millions, millions of MACs after, megabytes of the
file with its floats as they are (random numbers give a coder nothing to do), largest error over largest logit, seconds.
A network that is refused has its reason; the last line is the count. With --onnx a network went through when its ONNX
file, too, gives the packed network's logits in onnxruntime within that distance.
"""

from __future__ import annotations

import argparse
import time

import torch
import torchvision
from torch import nn

from sparsign.export import convert
from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.file import dumps, loads
from sparsign.packing.floats import FLOAT_CODECS
from sparsign.packing.limits import Limits
from sparsign.packing.trace import to_packed

SIDE = 32
SIDES = {"inception_v3": 75, "vit_h_14": 28, "maxvit_t": 224, "alexnet": 64}
"""Where 32 pixels shrink to nothing or are refused by the network itself."""
TOLERANCE = 1e-4
LIMITS = Limits(decoded_bytes=4 << 30)
HEADINGS = f"{'network':20} {'side':>4} {'M before':>8} {'M after':>8} {'M MACs':>9} {'MB':>7} {'error':>7} {'s':>4}"


@torch.no_grad()
def every_third_gone(model: nn.Module) -> nn.Module:
    """In eval mode, BN statistics random; every third filter of each conv is zero, with bias and BN."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.bias.normal_(0, 0.1)
            module.running_mean[::3], module.bias[::3] = 0, 0
        elif isinstance(module, nn.Conv2d):
            module.weight[::3] = 0
            if module.bias is not None:
                module.bias[::3] = 0
    return model.eval()


@torch.no_grad()
def build(name: str, side: int) -> nn.Module:
    """The network in eval mode, with filters that are gone."""
    torch.manual_seed(0)
    arguments = {"image_size": side} if name.startswith("vit") else {}
    arguments |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **arguments)
    return every_third_gone(model)


@torch.no_grad()
def row(name: str, onnx: bool = False) -> tuple[bool, str]:
    """(whether it went through, its line of the table)."""
    side, started = SIDES.get(name, SIDE), time.perf_counter()
    model, shape = build(name, side), (3, side, side)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        packed = to_packed(model, lambda module: None, shape)
    except ValueError as error:
        return False, f"{name:20} refused: {error}"
    expected, before = model(images), sum(p.numel() for p in model.parameters() if p.dim() > 1)
    data = dumps(packed)
    del model, packed
    again = loads(data, LIMITS)
    after, macs = sum(node.codes.codes.size for node in again.layers().values()), sum(again.macs().values())
    error = ((ReferenceEngine(again)(images) - expected).abs().max() / expected.abs().max()).item()
    numbers = f"{before / 1e6:8.1f} {after / 1e6:8.1f} {macs / 1e6:9.1f} {len(data) / 1e6:7.1f} {error:7.0e}"
    equal, verdict = error < TOLERANCE, "equal" if error < TOLERANCE else "DIFFERENT"
    if onnx:
        try:
            convert(again, "onnx")
            verdict += ", ONNX too"
        except ValueError as refusal:
            equal, verdict = False, f"{verdict}, ONNX not: {refusal}"
    return equal, f"{name:20} {side:4} {numbers} {time.perf_counter() - started:4.0f}  {verdict}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--onnx", action="store_true")
    given = parser.parse_args()
    names = given.names or torchvision.models.list_models(module=torchvision.models)
    for codec in FLOAT_CODECS.keys() - {"raw"}:
        del FLOAT_CODECS[codec]
    print(HEADINGS)
    went = 0
    for name in names:
        success, line = row(name, given.onnx)
        went += success
        print(line, flush=True)
    print(f"{went} of {len(names)} networks cut, packed, reloaded and equal{', as ONNX too' if given.onnx else ''}")


if __name__ == "__main__":
    main()
