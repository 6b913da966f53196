"""The compiled engine runs what the reference runs, and its sums over signs are the exact ones."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_engine import IMAGES, floats, ternarise, unit_codes
from tiny_nets import INPUT, NETS, build, layer, prune

from sparsign.kernels.engine import NativeEngine, Probe, load_engine, native
from sparsign.kernels.reference import ReferenceEngine
from sparsign.models.resnet import resnet20
from sparsign.packing.spec import Node, PackedModel
from sparsign.packing.trace import to_packed

if native() is None:
    pytest.skip("the compiled engine was not built", allow_module_level=True)

ISAS = native().isas()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(4))
def test_every_net_of_floats_answers_as_the_reference(isa, name, seed):
    packed = to_packed(prune(build(name, seed), ratio=0.15 * seed), floats, INPUT)
    torch.testing.assert_close(NativeEngine(packed, isa)(IMAGES), ReferenceEngine(packed)(IMAGES), atol=1e-4, rtol=0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["bireal", "binary_chain"])
@pytest.mark.parametrize("seed", range(4))
def test_binary_nets_sum_exactly(isa, name, seed):
    """Given the bits that a layer read, its sums are torch's in float64."""
    packed = to_packed(ternarise(prune(build(name, seed), 0.15 * seed, batchnorm=False)), unit_codes, INPUT)
    torch.testing.assert_close(NativeEngine(packed, isa)(IMAGES), ReferenceEngine(packed)(IMAGES), atol=1e-4, rtol=0)
    found = Probe(packed, isa).sums(IMAGES[0])
    assert found
    for name, (signs, sums) in found.items():
        node = packed.layers()[name]
        weight = torch.from_numpy(node.codes.weight()).sign().double()
        exact = F.conv2d(signs[None].double(), weight, None, node.attrs["stride"], node.attrs["padding"])[0]
        assert torch.equal(sums.double(), exact)


def test_load_engine_picks_the_compiled_one_and_obeys_the_variable(monkeypatch):
    packed = to_packed(build("chain", 0), floats, INPUT)
    monkeypatch.delenv("SPARSIGN_ISA", raising=False)
    assert (load_engine(packed).name, load_engine(packed).isa) == ("native", ISAS[0])
    assert load_engine(packed, "generic").isa == "generic"
    monkeypatch.setenv("SPARSIGN_ISA", "reference")
    assert load_engine(packed).name == "reference"
    with pytest.raises(ValueError, match="instruction set 'sse9' is not one of this build"):
        load_engine(packed, "sse9")
    with pytest.raises(ValueError, match=r"images of shape \[2, 1, 8, 8\], expected \[N, 3, 8, 8\]"):
        load_engine(packed, "generic")(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("block", "shortcut"),
    [("react", "duplicate"), ("bireal", "sign_conv"), ("plain", "conv"), ("preact", None), ("react", "conv")],
)
def test_every_binary_block_runs_compiled(isa, block, shortcut):
    torch.manual_seed(0)
    net = resnet20(10, 3, 8, form="fbin", block=block, shortcut=shortcut).eval()
    for name, parameter in net.named_parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(mean=float(name.endswith("weight")), std=0.3)
    packed = to_packed(ternarise(net), unit_codes, INPUT)
    torch.testing.assert_close(NativeEngine(packed, isa)(IMAGES), ReferenceEngine(packed)(IMAGES), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_gates_curves_and_permutations_run_compiled(isa):
    curves = ("sigmoid", "silu", "hardsigmoid", "hardswish")
    eye = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    nodes = [Node("input", "x")]
    for curve in curves:
        nodes += [Node(curve, curve, (nodes[-1].name,)), Node("mul_scalar", f"s{curve}", (curve,), {"value": 2.5})]
    last = nodes[-1].name
    nodes += [
        Node("permute", "turned", (last,), tensors={"order": np.array([2, 0, 1])}),
        Node("globalavgpool", "mean", ("x",)),
        Node("sigmoid", "gate", ("mean",)),
        Node("mul", "gated", ("turned", "gate")),
        Node("prelu", "one", ("x",), tensors={"slope": np.array([0.3], np.float32)}),
        Node("mul", "both", ("one", "gated")),
        Node("add_scalar", "plus", ("both",), {"value": -0.25}),
        Node("globalavgpool", "pool", ("plus",)),
        Node("flatten", "flat", ("pool",)),
        Node("linear", "fc", ("flat",), codes=layer(eye)),
    ]
    packed = PackedModel(nodes, INPUT, "fc")
    torch.testing.assert_close(NativeEngine(packed, isa)(IMAGES), ReferenceEngine(packed)(IMAGES), atol=1e-6, rtol=1e-6)
