"""`sparsign.load`: a packed file as a module, in both engines, and what torch's compilers make of it."""

import subprocess
import sys

import pytest
import torch
from test_engine import IMAGES, ternarise, unit_codes
from tiny_nets import INPUT, build

import sparsign
from sparsign.kernels.engine import native
from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.file import write
from sparsign.packing.trace import to_packed

needs_native = pytest.mark.skipif(native() is None, reason="the compiled engine was not built")


@pytest.fixture(scope="module")
def packed():
    return to_packed(ternarise(build("bireal", 0)), unit_codes, INPUT)


@pytest.fixture(scope="module")
def file(packed, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "net.sparsign"
    write(packed, path)
    return path


def test_the_reference_keeps_every_bit_and_moves_between_devices(packed, file):
    net = sparsign.load(file, "reference")
    assert not net.training and torch.equal(net(IMAGES), ReferenceEngine(packed)(IMAGES))
    assert net.to("meta")(IMAGES.to("meta")).shape == (5, 4)


@needs_native
def test_the_engines_agree_and_auto_picks_by_device(packed, file):
    expected = ReferenceEngine(packed)(IMAGES)
    for engine in ("native", "auto"):
        torch.testing.assert_close(sparsign.load(file, engine)(IMAGES), expected, atol=1e-4, rtol=0)
    assert sparsign.load(file).to("meta")(IMAGES.to("meta")).shape == (5, 4)
    with pytest.raises(ValueError, match="images on meta: engine=native runs on the CPU"):
        sparsign.load(file, "native")(IMAGES.to("meta"))


@needs_native
def test_the_registered_operation_passes_torchs_own_checks(file):
    net = sparsign.load(file, "native")
    torch.library.opcheck(torch.ops.sparsign.run_packed, (IMAGES, net.file, 4, "", 1))


@needs_native
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_compile_and_export_take_the_whole_network(file, engine):
    net = sparsign.load(file, engine)
    expected = net(IMAGES)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IMAGES), expected, atol=1e-4, rtol=0)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(net, (IMAGES,), dynamic_shapes=({0: batch},)).module()
    del net
    torch.testing.assert_close(exported(IMAGES[:3]), expected[:3], atol=1e-4, rtol=0)


def test_bad_arguments_are_named(file, tmp_path):
    with pytest.raises(ValueError, match="engine=fast, expected one of auto, native, reference"):
        sparsign.load(file, "fast")
    with pytest.raises(ValueError, match="threads=-1, expected at least 1"):
        sparsign.load(file, threads=-1)
    with pytest.raises(FileNotFoundError, match="no such packed model"):
        sparsign.load(tmp_path / "none.sparsign")
    with pytest.raises(ValueError, match=r"images of shape \[2, 1, 8, 8\], expected \[N, 3, 8, 8\]"):
        sparsign.load(file)(torch.zeros(2, 1, 8, 8))


def test_importing_the_package_does_not_import_torch():
    code = "import sys, sparsign; sparsign.load; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
