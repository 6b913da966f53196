"""`sparsign.load`: a packed file as a module, in both engines, and what torch's compilers make of it."""

import gc
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from test_engine import IMAGES, ternarise, unit_codes
from tiny_nets import INPUT, build

import sparsign
from sparsign.kernels import module
from sparsign.kernels.engine import NativeEngine, native
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


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_logits_are_fp32_whatever_is_around(file, engine):
    if engine == "native" and native() is None:
        pytest.skip("the compiled engine was not built")
    net = sparsign.load(file, engine)
    expected = net(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(IMAGES), expected)
    for change in (torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double):
        assert torch.equal(change(net)(IMAGES), expected)


@needs_native
def test_the_environment_names_the_instruction_set(file, monkeypatch):
    for isa in native().isas():
        monkeypatch.setenv("SPARSIGN_ISA", isa)
        net = sparsign.load(file)
        assert net.isa == isa and module._engine(net.file, net.isa, net.threads).isa == isa
    assert sparsign.load(file, isa="generic").isa == "generic"
    monkeypatch.setenv("SPARSIGN_ISA", "reference")
    assert sparsign.load(file).engine == "reference"
    with pytest.raises(ValueError, match=r"engine=native, but isa or SPARSIGN_ISA is reference"):
        sparsign.load(file, "native")
    monkeypatch.setenv("SPARSIGN_ISA", "mmx")
    with pytest.raises(ValueError, match="mmx"):
        sparsign.load(file)


@needs_native
def test_engines_stay_ready_as_long_as_their_modules_and_no_longer(file, monkeypatch):
    before, made = len(module._prepared), []
    monkeypatch.setattr(module, "NativeEngine", lambda *arguments: made.append(1) or NativeEngine(*arguments))
    nets = [sparsign.load(file) for _ in range(40)]
    for net in nets * 2:
        net(IMAGES)
    assert len(made) == 40 and len(module._prepared) == before + 40
    del nets, net
    gc.collect()
    assert len(module._prepared) == before


@needs_native
def test_an_engine_whose_file_has_moved_is_not_taken_for_that_of_another_at_its_place(file, packed, tmp_path):
    """Moving in place, as share_memory() does, frees memory that the next file of that length may get."""
    net, other = sparsign.load(file), sparsign.load(file)
    expected = net(IMAGES)
    key = (net.file.data_ptr(), net.file._version, net.file.numel(), "", 0)
    assert key in module._prepared
    module._prepared[key] = (lambda images: torch.zeros(len(images), 4)), other.file
    assert torch.equal(net(IMAGES), expected)


@needs_native
@pytest.mark.filterwarnings("ignore")  # Python's own, of forks beside threads
def test_a_child_runs_though_its_parent_forked_in_the_middle_of_a_load(file):
    net = sparsign.load(file)
    with module._lock:  # as another thread of the parent would
        child = threading.Thread(target=lambda: codes.append(os.waitpid(fork(net), 0)[1]))
        codes: list[int] = []
        child.start()
        child.join(60)
    assert codes == [0]


def fork(net) -> int:
    if pid := os.fork():
        return pid
    signal.alarm(20)  # ends a child that hangs
    net(IMAGES)
    os._exit(0)


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
