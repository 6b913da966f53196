"""What the compiled engine has no step for or no room for: said so, and run in torch; what is not finite stays so."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_nets import layer

import sparsign
from sparsign.kernels.engine import NativeEngine, load_engine, native
from sparsign.kernels.lower import CannotRun
from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.file import write
from sparsign.packing.spec import Node, PackedModel

if native() is None:
    pytest.skip("the compiled engine was not built", allow_module_level=True)

ISAS = native().isas()


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def signs(*shape):
    return np.where(floats(*shape) > 0, 1, -1)


def packed(*nodes, shape, channels):
    """A network that ends in averages of its last node's channels and a linear layer with three outputs."""
    end = [
        Node("globalavgpool", "mean", (nodes[-1].name,)),
        Node("flatten", "flat", ("mean",)),
        Node("linear", "fc", ("flat",), codes=layer(floats(3, channels))),
    ]
    return PackedModel([Node("input", "x"), *nodes, *end], shape, "fc")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(12, 6, 6), (6, 12, 6), (6, 6, 6), (12, 6, 3)])
def test_signs_behind_any_grouped_conv_run_compiled(isa, inputs, outputs, groups):
    grouped = layer(floats(outputs, inputs // groups, 3, 3), full=(outputs, inputs // groups, 3, 3))
    model = packed(
        Node("conv", "grouped", ("x",), {"padding": (1, 1), "groups": groups}, codes=grouped),
        Node("sign", "signs", ("grouped",)),
        Node("conv", "binary", ("signs",), {"padding": (1, 1)}, codes=layer(signs(8, outputs, 3, 3))),
        shape=(inputs, 8, 8), channels=8,
    )  # fmt: skip
    images = torch.from_numpy(floats(3, inputs, 8, 8))
    torch.testing.assert_close(NativeEngine(model, isa)(images), ReferenceEngine(model)(images), atol=1e-4, rtol=0)


def too_large():
    nodes = [Node("input", "x"), Node("relu", "r", ("x",)), Node("flatten", "flat", ("r",))]
    fc = Node("linear", "fc", ("flat",), codes=layer(floats(2, 3 * 600 * 600)))
    return PackedModel([*nodes, fc], (3, 600, 600), "fc"), "node 'flat'.*2\\^20"


def too_many_borders():
    binary = Node("conv", "binary", ("signs",), {"padding": (32, 32)}, codes=layer(signs(2, 3, 65, 65)))
    return packed(Node("sign", "signs", ("x",)), binary, shape=(3, 65, 65), channels=2), "node 'binary'.*border"


@pytest.mark.parametrize("beyond", [too_large, too_many_borders])
def test_a_network_beyond_the_limits_runs_in_torch_with_a_word(beyond):
    model, said = beyond()
    with pytest.raises(CannotRun, match=said):
        NativeEngine(model)
    with pytest.warns(UserWarning, match=f"{said}.*: it runs in torch"):
        assert load_engine(model, None).name == "reference"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("place", [0, 5, 15])
def test_max_pooling_passes_on_what_is_no_number(isa, place):
    model = packed(Node("maxpool", "pooled", ("x",)), shape=(2, 4, 4), channels=2)
    images = torch.from_numpy(floats(2, 2, 4, 4))
    images[0, 1].view(-1)[place] = torch.nan
    answers = NativeEngine(model, isa)(images)
    assert answers[0].isnan().all()
    torch.testing.assert_close(answers[1:], ReferenceEngine(model)(images[1:]), atol=1e-5, rtol=0)


CLAMPS = [
    Node("relu", "c", ("x",)),
    Node("relu6", "c", ("x",)),
    Node("hardtanh", "c", ("x",), {"min": -1.0, "max": 0.5}),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("clamp", CLAMPS, ids=lambda node: node.op)
@pytest.mark.parametrize("place", [0, 17, 24])
def test_a_clamp_passes_on_what_is_no_number_and_bounds_infinities(isa, clamp, place):
    """As torch does: of min and max either operand may be the one that a NaN leaves behind."""
    model = packed(clamp, shape=(2, 5, 5), channels=2)
    images = torch.from_numpy(floats(3, 2, 5, 5) * 10)
    images[0, 1].view(-1)[place] = torch.nan
    images[1, 0].view(-1)[place] = -torch.inf
    answers = NativeEngine(model, isa)(images)
    assert answers[0].isnan().all()
    torch.testing.assert_close(answers[1:], ReferenceEngine(model)(images[1:]), atol=1e-4, rtol=0)


def test_a_pooling_window_without_a_pixel_is_refused():
    attrs = {"kernel": (2, 2), "stride": (1, 1), "padding": (1, 1), "dilation": (3, 3)}
    model = packed(Node("maxpool", "pooled", ("x",), attrs), shape=(2, 2, 2), channels=2)
    with pytest.raises(ValueError, match="dilation of 3 over 2 padded pixels"):
        model.validate()


def test_a_loaded_state_is_the_one_that_answers(tmp_path):
    models = [packed(Node("conv", "c", ("x",), codes=layer(signs(4, 2, 1, 1) * s)), shape=(2, 4, 4), channels=4)
              for s in (1, -1)]  # fmt: skip
    nets = []
    for k, model in enumerate(models):
        write(model, tmp_path / f"{k}.sparsign")
        nets.append(sparsign.load(tmp_path / f"{k}.sparsign"))
    images = torch.from_numpy(floats(2, 2, 4, 4))
    answers = [net(images) for net in nets]
    assert not torch.allclose(*answers)
    nets[0].load_state_dict(nets[1].state_dict())
    assert torch.equal(nets[0](images), answers[1])


SHORT = """
import resource, sys, torch
import sparsign
net = sparsign.load(sys.argv[1], "native", threads=int(sys.argv[2]))
images = torch.zeros(256, *net.input_shape)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]),) * 2)
try:
    net(images)
    print("answered")
except (MemoryError, RuntimeError) as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as Linux does")
@pytest.mark.parametrize(
    ("side", "threads", "room", "said"), [(8, 64, 40 << 20, "answered"), (256, 4, 1 << 20, "MemoryError")]
)
def test_short_of_threads_or_memory_a_process_goes_on(side, threads, room, said, tmp_path):
    """A thread's stack is 8 MiB: few of the 64 begin, the caller does the rest. Large images need more than 1 MiB."""
    conv = Node("conv", "c", ("x",), {"padding": (1, 1)}, codes=layer(floats(4, 2, 3, 3)))
    write(packed(conv, Node("conv", "d", ("c",), codes=layer(floats(4, 4, 1, 1))), shape=(2, side, side), channels=4),
          tmp_path / "net.sparsign")  # fmt: skip
    command = [sys.executable, "-c", SHORT, str(tmp_path / "net.sparsign"), str(threads), str(room)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, said), done.stderr
