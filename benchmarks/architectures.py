"""Which of torchvision's classification networks go through: cut, packed, reloaded, equal.

    python benchmarks/architectures.py [NAME ...] [--most MILLIONS]

Every network has random weights and BN statistics, and every third filter of each conv is zero with its bias and what
BN makes of it; ungrouped convs only where their channels are no stream's whole width would not change the answer. A
network is equal when the file, read back, gives the logits of the network as it was before the cut within 1e-4 of the
largest. The table has parameters and millions of them before and after, MACs before and after, bytes of the file and
seconds; what does not go through has its reason, and the last line the count.
"""

from __future__ import annotations

import argparse
import time

import torch
import torchvision
from torch import nn

from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.file import dumps, loads
from sparsign.packing.trace import to_packed

SIDES = {"inception_v3": 75, "maxvit_t": 224, "alexnet": 64, "squeezenet1_0": 32, "squeezenet1_1": 32}
"""Smallest images, where 32 pixels shrink to nothing or are refused by the network itself."""
TOLERANCE = 1e-4


@torch.no_grad()
def build(name: str, side: int) -> nn.Module:
    """The network in eval mode, with filters that are gone."""
    torch.manual_seed(0)
    arguments = {"image_size": side} if name.startswith("vit") else {}
    arguments |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **arguments).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.bias.normal_(0, 0.1)
            module.running_mean[::3], module.bias[::3] = 0, 0
        elif isinstance(module, nn.Conv2d):
            module.weight[::3] = 0
            if module.bias is not None:
                module.bias[::3] = 0
    return model


@torch.no_grad()
def row(name: str) -> tuple[bool, str]:
    """(whether it went through, its line of the table)."""
    side = next((side for start, side in SIDES.items() if name == start), 32)
    started = time.perf_counter()
    model = build(name, side)
    shape = (3, side, side)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        packed = to_packed(model, lambda module: None, shape)
    except ValueError as error:
        return False, f"{name:20} refused: {error}"
    before = sum(p.numel() for p in model.parameters())
    expected = model(images)
    del model
    data = dumps(packed)
    again = loads(data)
    after = sum(node.codes.codes.size for node in again.layers().values())
    error = ((ReferenceEngine(again)(images) - expected).abs().max() / expected.abs().max()).item()
    equal = error < TOLERANCE
    numbers = f"{before / 1e6:8.1f} {after / 1e6:8.1f} {sum(again.macs().values()) / 1e6:9.0f} {len(data) / 1e6:8.1f}"
    seconds = time.perf_counter() - started
    return equal, f"{name:20} {side:4} {numbers} {error:9.0e} {seconds:6.0f}  {'equal' if equal else 'DIFFERENT'}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = torchvision.models.list_models(module=torchvision.models)
    chosen = parser.parse_args().names or names
    print(
        f"{'network':20} {'side':>4} {'M params':>8} {'M left':>8} {'M MACs':>9} {'MB file':>8} {'error':>9} {'s':>6}"
    )
    results = []
    for name in chosen:
        went, line = row(name)
        results.append(went)
        print(line, flush=True)
    print(f"{sum(results)} of {len(chosen)} networks cut, packed, reloaded and equal")


if __name__ == "__main__":
    main()
