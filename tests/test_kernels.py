"""The compiled engine against torch: exact integer sums, on every instruction set of this machine, on any threads."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparsign.kernels.engine import native

if native() is None:
    pytest.skip("the compiled engine was not built", allow_module_level=True)

N = native()
ISAS = N.isas()
NO_MAP = np.empty(0, np.int32)


def window(kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    return N.Window(kernel, stride, padding, dilation, groups)


def flattened(network, value):
    """Finishes a network whose logits are all numbers of `value`."""
    c, h, w = network.shape(value)
    chain, out = N.Chain(), network.value(False, 1, 1, c * h * w)
    chain.store(out)
    network.flatten(value, chain)
    network.finish(out)
    return network


def run(network, images, threads=1):
    logits = np.empty((len(images), network.classes), np.float32)
    network.run(images.ctypes.data, len(images), logits.ctypes.data, threads)
    return logits


def conv_network(isa, images, weight, shape, bits, **geometry):
    """input -> sign, if over bits -> conv -> flatten; shape: that of the conv's output."""
    network = N.Network(isa, images.shape[1:], False)
    source = 0
    if bits:
        c, h, w = images.shape[1:]
        source, chain = network.value(True, h, w, c), N.Chain()
        chain.sign(source)
        network.gather([N.Source(0, 1, NO_MAP)], (c, h, w), chain)
    out, chain = network.value(False, *shape[2:], shape[1]), N.Chain()
    chain.store(out)
    step = network.conv_bits if bits else network.conv_float
    step(source, window(weight.shape[2:], **geometry), weight, chain)
    return flattened(network, out)


SIZES = st.tuples(
    st.integers(1, 150), st.integers(1, 140), st.sampled_from([1, 2, 3, 5, 7]), st.sampled_from([1, 3]),
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 2), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3),
    st.integers(1, 2), st.sampled_from([0.0, 0.5]), st.integers(0, 2**31),
)  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_sums_over_signs_are_torchs_to_the_last_integer(isa, sizes):
    inputs, outputs, kh, kw, h, w, sh, sw, ph, pw, dilation, zeros, seed = sizes
    h, w = max(h, (kh - 1) * dilation + 1 - 2 * ph), max(w, (kw - 1) * dilation + 1 - 2 * pw)
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(2, inputs, h, w)).astype(np.float32)
    codes = rng.choice([-1, 1], (outputs, inputs, kh, kw)).astype(np.int8)
    codes[rng.random(codes.shape) < zeros] = 0
    geometry = {"stride": (sh, sw), "padding": (ph, pw), "dilation": (dilation, dilation)}
    signs = torch.where(torch.from_numpy(images) >= 0, 1.0, -1.0).double()
    exact = F.conv2d(signs, torch.from_numpy(codes).double(), **geometry)
    network = conv_network(isa, images, codes, exact.shape, True, **geometry)
    assert np.array_equal(run(network, images), exact.flatten(1).float().numpy())


LEVELS = st.sampled_from(["any", "binary", "ternary"])
STRIDES = [{}, {"stride": (2, 1), "dilation": (1, 2)}, {"padding": (0, 2), "stride": (1, 2)}]


def leveled(rng, shape, levels):
    """Any fp32 numbers; or a scale per filter times -1, 1 and, if ternary, 0: among others whole filters and inputs."""
    weight = rng.normal(size=shape).astype(np.float32)
    if levels == "any":
        return weight
    weight = np.sign(weight) * rng.choice(np.float32([0.3, 1, 1.7]), (shape[0], 1, 1, 1))
    if levels == "ternary":
        weight *= rng.random(shape) < 0.7
        weight[rng.random(shape[0]) < 0.2] = 0
        weight[:, rng.random(shape[1]) < 0.2] = 0
    return weight


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=80, deadline=None)
@given(
    SIZES, st.sampled_from(["dense", "sparse", "grouped", "depthwise"]), st.sampled_from(["any", "binary", "ternary"])
)
def test_float_convs_are_torchs_up_to_rounding(isa, sizes, kind, levels):
    inputs, outputs, kh, kw, h, w, sh, sw, ph, pw, dilation, _, seed = sizes
    groups = {"dense": 1, "sparse": 1, "grouped": 3, "depthwise": inputs}[kind]
    inputs, outputs = {"grouped": (3 * (inputs // 3 + 1), 3 * (outputs // 3 + 1))}.get(
        kind, (inputs, inputs if kind == "depthwise" else outputs)
    )
    h, w = max(h, (kh - 1) * dilation + 1 - 2 * ph), max(w, (kw - 1) * dilation + 1 - 2 * pw)
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(2, inputs, h, w)).astype(np.float32)
    weight = leveled(rng, (outputs, inputs // groups, kh, kw), levels)
    if kind == "sparse":
        weight *= rng.random(weight.shape) < 0.1
    geometry = {"stride": (sh, sw), "padding": (ph, pw), "dilation": (dilation, dilation), "groups": groups}
    exact = F.conv2d(torch.from_numpy(images).double(), torch.from_numpy(weight).double(), **geometry)
    found = run(conv_network(isa, images, weight, exact.shape, False, **geometry), images)
    assert np.abs(found - exact.flatten(1).numpy()).max() <= 3e-6 * max(1, exact.abs().max())


@pytest.mark.parametrize("isa", sorted({*ISAS} - {"generic"}))
@pytest.mark.parametrize("levels", ["binary", "ternary"])
@pytest.mark.parametrize("geometry", STRIDES)
def test_look_ups_of_a_layer_in_bands_keep_fp32s_error(isa, levels, geometry):
    """A layer whose tables do not fit into the cache at once: error at most 1.2e-6 of the largest output."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 96, 24, 24)).astype(np.float32)
    weight, geometry = leveled(rng, (40, 96, 3, 3), levels), {"padding": (1, 1), **geometry}
    exact = F.conv2d(torch.from_numpy(images).double(), torch.from_numpy(weight).double(), **geometry)
    found = run(conv_network(isa, images, weight, exact.shape, False, **geometry), images)
    assert np.abs(found - exact.flatten(1).numpy()).max() <= 1.2e-6 * exact.abs().max()


MAPS = st.lists(st.sampled_from(["as it is", "kept", "any", "none"]), min_size=1, max_size=4)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 5), st.integers(1, 5), MAPS, st.integers(0, 2**31))
def test_a_gather_adds_every_channel_where_its_map_says(isa, inputs, outputs, h, w, maps, seed):
    """Maps of pruned channels (sorted, with holes), any others (far apart, repeated), and strides."""
    rng = np.random.default_rng(seed)
    stride = int(rng.integers(1, 3))
    images = rng.normal(size=(2, inputs, h * stride, w * stride)).astype(np.float32)
    exact, sources, network = 0, [], N.Network(isa, images.shape[1:], False)
    for kind in maps:
        places = rng.integers(-1, inputs, outputs)
        if kind == "kept":
            places = np.full(outputs, -1)
            kept = np.sort(rng.choice(outputs, min(inputs, outputs), replace=False))
            places[kept] = np.arange(len(kept)) + rng.integers(0, inputs - len(kept) + 1)
        elif kind == "none":
            places = np.full(outputs, -1)
        elif kind == "as it is":
            places = np.arange(inputs)
            if inputs != outputs:
                continue
        step = images[:, :, ::stride, ::stride]
        exact = exact + np.where(places[None, :, None, None] < 0, np.float32(0), step[:, places])
        sources.append(N.Source(0, stride, NO_MAP if kind == "as it is" else places.astype(np.int32)))
    assume(sources)
    value, chain = network.value(False, h, w, outputs), N.Chain()
    chain.store(value)
    network.gather(sources, (outputs, h, w), chain)
    assert np.array_equal(run(flattened(network, value), images), exact.reshape(2, -1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("levels", ["any", "binary", "ternary"])
def test_threads_and_batches_do_not_change_a_bit(isa, levels):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(11, 20, 6, 6)).astype(np.float32)
    weight = leveled(rng, (30, 20, 3, 3), levels)
    network = conv_network(isa, images, weight, (1, 30, 4, 4), False)
    together = run(network, images)
    for threads in (2, 3, 16):
        assert np.array_equal(run(network, images, threads), together)
    for k in range(len(images)):
        assert np.array_equal(run(network, images[k : k + 1]), together[k : k + 1])


def test_an_instruction_set_that_is_not_here_is_named():
    with pytest.raises(ValueError, match="instruction set 'mmx' is not one of this build: expected one of"):
        N.Network("mmx", (1, 4, 4), False)
    for isa in {"avx2"} - set(ISAS):
        with pytest.raises(ValueError, match=f"{isa}.*expected one of"):
            N.Network(isa, (1, 4, 4), False)


def small():
    network = N.Network("generic", (3, 4, 4), False)
    return network, network.value(False, 4, 4, 3), N.Chain()


def test_hostile_programs_are_refused():
    """Whatever a file holds, a step never gets sizes that reach outside its values."""
    weight = np.ones((3, 3, 3, 3), np.float32)
    same = window((3, 3), padding=(1, 1))
    network, value, chain = small()
    with pytest.raises(ValueError, match="no value 99"):
        network.conv_float(99, same, weight, chain)
    with pytest.raises(ValueError, match="of the other kind"):
        network.conv_bits(0, same, weight.astype(np.int8), chain)
    with pytest.raises(ValueError, match="larger than its input"):
        network.conv_float(0, window((3, 3), dilation=(9, 9)), weight, chain)
    with pytest.raises(ValueError, match="do not fit"):
        network.conv_float(0, same, np.ones((3, 5, 3, 3), np.float32), chain)
    with pytest.raises(ValueError, match="read before it is written"):
        network.conv_float(value, same, weight, chain)
    with pytest.raises(ValueError, match="beyond its operand"):
        network.gather([N.Source(0, 1, np.array([0, 1, 3], np.int32))], (3, 4, 4), chain)
    with pytest.raises(ValueError, match="beyond its operand"):
        network.gather([N.Source(0, 2, NO_MAP)], (3, 4, 4), chain)
    with pytest.raises(ValueError, match="beyond its input"):
        network.pool(True, 0, window((2, 2), (2, 2)), (4, 4), False, chain)
    with pytest.raises(ValueError, match="expected 1 to"):
        network.value(False, 1 << 30, 1, 1)
    wrong = N.Chain()
    wrong.store(network.value(False, 5, 4, 3))
    with pytest.raises(ValueError, match="another shape than the step's output"):
        network.conv_float(0, same, weight, wrong)
    short = N.Chain()
    short.shift(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="another length"):
        network.conv_float(0, same, weight, short)
    with pytest.raises(ValueError, match="not a vector"):
        network.finish(value)
    with pytest.raises(ValueError, match="not finished"):
        run(network, np.zeros((1, 3, 4, 4), np.float32))
