"""The entropy coders: what they give back, how short they are, what they refuse, and that their bits stay."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsign.packing.coding import (
    coders,
    decode_codes,
    decode_fields,
    encode_codes,
    encode_fields,
)
from sparsign.packing.floats import FIELDS, from_bits, to_bits

NATIVE = coders._coder
CODERS = [None] if NATIVE is None else [None, NATIVE]
needs_native = pytest.mark.skipif(NATIVE is None, reason="the compiled coder is not built")


@pytest.fixture(params=CODERS, ids=["python", "native"][: len(CODERS)])
def coder(request, monkeypatch):
    monkeypatch.setattr(coders, "_coder", request.param)
    return request.param


def in_python(call, *args):
    coders._coder = None
    try:
        return call(*args)
    finally:
        coders._coder = NATIVE


ALPHABETS = {
    "flags": [0, 1],
    "signs": [-1, 1],
    "ternary": [-1, 0, 1],
    "zero": [0],
    "3 bits": range(-3, 4),
    "powers": [-8, -4, -2, -1, 0, 1, 2, 4, 8],
    "8 bits": range(-128, 128),
    "16 bits": [-32767, -300, 0, 5, 32767],
}


@st.composite
def networks(draw):
    """A few layers with and without masks."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    layers, masks = [], []
    for _ in range(draw(st.integers(0, 4))):
        shape = tuple(draw(st.lists(st.integers(0 if draw(st.booleans()) else 1, 5), min_size=1, max_size=4)))
        codes = generator.choice(ALPHABETS[draw(st.sampled_from(sorted(ALPHABETS)))], size=shape).astype(np.int16)
        mask = None
        if len(shape) > 1 and draw(st.booleans()):
            mask = generator.random(shape[:2]) < 0.6
            codes[~mask] = 0
        layers.append(codes)
        masks.append(mask)
    return layers, masks


@settings(max_examples=60, deadline=None)
@given(network=networks())
def test_codes_come_back_and_python_and_native_code_the_same_bits(network):
    layers, masks = network
    shapes = [codes.shape for codes in layers]
    data = encode_codes(layers, masks)
    assert in_python(encode_codes, layers, masks) == data
    for decoded in (decode_codes(data, shapes, masks), in_python(decode_codes, data, shapes, masks)):
        assert all(np.array_equal(a, b) and a.shape == b.shape for a, b in zip(layers, decoded, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 12), max_size=4).filter(lambda widths: sum(widths) <= 32),
    count=st.integers(0, 60),
    skew=st.integers(0, 40),
    seed=st.integers(0, 999),
)
def test_fields_come_back_and_python_and_native_code_the_same_bits(widths, count, skew, seed):
    numbers = np.random.default_rng(seed).integers(0, 1 << sum(widths), size=count, dtype=np.uint64) >> skew
    data = encode_fields(numbers, widths)
    assert in_python(encode_fields, numbers, widths) == data
    assert np.array_equal(decode_fields(data, count, widths), numbers)
    assert np.array_equal(in_python(decode_fields, data, count, widths), numbers)


# -- how short they are ------------------------------------------------------------------------------------------------


def entropy_bytes(symbols):
    counts = np.unique(symbols, return_counts=True)[1]
    return -(counts * np.log2(counts / counts.sum())).sum() / 8


def ternary(zeros, shape, seed=0):
    return np.random.default_rng(seed).choice([-1, 0, 1], p=[(1 - zeros) / 2, zeros, (1 - zeros) / 2], size=shape)


@needs_native
@pytest.mark.parametrize(("zeros", "mixing"), [(0.3, 1.005), (0.8, 1.005), (0.99, 1.02)])
def test_independent_symbols_cost_their_entropy(zeros, mixing):
    codes = ternary(zeros, (256, 512, 3, 3))
    assert len(encode_fields(codes + 1, [2])) <= 1.005 * entropy_bytes(codes)
    assert len(encode_codes([codes])) <= mixing * entropy_bytes(codes)


@needs_native
def test_wide_alphabets_cost_their_entropy():
    symbols = np.minimum(np.random.default_rng(0).geometric(0.05, 400_000), 200)
    assert len(encode_fields(symbols, [8])) <= 1.005 * entropy_bytes(symbols)


def smooth_kernels(rows, cols, seed=0):
    """Ternary codes of kernels whose weights vary slowly, more of them zero in some filters than in others."""
    generator = np.random.default_rng(seed)
    weights = generator.normal(size=(rows, cols, 1, 1)) + 0.5 * generator.normal(size=(rows, cols, 3, 3))
    return (np.sign(weights) * (abs(weights) > generator.uniform(0.2, 2, size=(rows, 1, 1, 1)))).astype(np.int8)


@needs_native
def test_contexts_see_neighbours_filters_and_earlier_layers():
    codes = smooth_kernels(64, 32)
    assert len(encode_codes([codes])) < 0.8 * entropy_bytes(codes)
    alone = sum(len(encode_codes([part])) for part in np.split(codes, 16))
    assert len(encode_codes(np.split(codes, 16))) < 0.97 * alone


@needs_native
def test_signs_without_structure_cost_a_bit_each_and_constants_nothing():
    signs = np.random.default_rng(0).choice([-1, 1], size=(64, 64, 3, 3))
    assert signs.size / 8 <= len(encode_codes([signs])) <= 1.01 * signs.size / 8
    for constant in (np.zeros((300, 300), int), np.ones((300, 300), int)):
        assert len(encode_codes([constant])) <= 16


def test_masks_are_not_coded_again(coder):
    codes = ternary(0.2, (6, 8, 3, 3))
    mask = np.random.default_rng(1).random((6, 8)) < 0.5
    codes[~mask] = 0
    data = encode_codes([codes], [mask])
    assert len(data) < len(encode_codes([codes]))
    assert np.array_equal(decode_codes(data, [codes.shape], [mask])[0], codes)


def test_noise_stays_plain(coder):
    noise = np.random.default_rng(0).integers(0, 256, 500)
    assert len(encode_fields(noise, [8])) <= 501


# -- floats ------------------------------------------------------------------------------------------------------------

SPECIAL = np.array([0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, 2.0**-14, 65504.0], np.float32)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_floats_come_back_bit_for_bit(precision):
    values = SPECIAL[:-1] if precision == "bf16" else SPECIAL
    bits = to_bits(values, precision)
    assert bits.max() < 1 << sum(FIELDS[precision])
    coded = encode_fields(bits, FIELDS[precision])
    back = from_bits(decode_fields(coded, len(bits), FIELDS[precision]), precision)
    assert back.tobytes() == values.tobytes()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_values_that_a_precision_does_not_hold_are_refused(precision):
    with pytest.raises(ValueError, match=f"{precision} does not hold"):
        to_bits(np.float32([1.0, 1.0001]), precision)
    with pytest.raises(ValueError, match="expected fp32"):
        to_bits(SPECIAL, "fp8")


def test_fields_of_floats_are_shorter_than_their_bytes():
    values = np.random.default_rng(0).normal(1, 0.1, 700).astype(np.float32)
    assert len(encode_fields(to_bits(values, "fp32"), FIELDS["fp32"])) < 0.85 * values.nbytes


# -- what they refuse --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "args"),
    [
        (encode_codes, ([np.array([40_000])],)),
        (encode_codes, ([np.array([-32768], np.int16)],)),
        (encode_codes, ([np.zeros((1, 1, 1, 1, 1), int)],)),
        (encode_codes, ([np.ones((2, 2), int)], [np.eye(2, dtype=bool)])),
        (encode_codes, ([np.ones((2, 2), int)], [np.ones(3, bool)])),
        (encode_codes, ([np.ones((2, 2), int)], [])),
        (encode_fields, (np.array([4]), [2])),
        (encode_fields, (np.array([-1]), [2])),
        (encode_fields, (np.array([1]), [17])),
        (encode_fields, (np.array([1]), [16, 16, 1])),
    ],
)
def test_wrong_input_is_refused(call, args):
    with pytest.raises(ValueError):
        call(*args)


def test_data_end_where_the_symbols_end(coder):
    codes = ternary(0.5, (8, 4, 3, 3))
    data = encode_codes([codes])
    for wrong in (data + b"\0", data + b"x", data[:-5], data[:10], b""):
        with pytest.raises(ValueError, match=r"coded data|kind"):
            decode_codes(wrong, [codes.shape])
    with pytest.raises(ValueError, match="coded data"):
        decode_codes(data, [(8, 3, 3, 3)])
    numbers = np.random.default_rng(0).integers(0, 200, 99)
    data = encode_fields(numbers, [8])
    for wrong in (data + b"\0", data + b"x", data[:-5], data[:10]):
        with pytest.raises(ValueError, match="coded data"):
            decode_fields(wrong, 99, [8])


def test_shorter_data_that_decode_are_other_codes_data(coder):
    codes = ternary(0.5, (8, 4, 3, 3))
    shorter = encode_codes([codes])[:-1]
    (other,) = decode_codes(shorter, [codes.shape])
    assert encode_codes([other]) == shorter and not np.array_equal(other, codes)


SMALL = smooth_kernels(5, 4)
DATA = encode_codes([SMALL, 5 * SMALL])


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=60) | st.tuples(st.integers(0, len(DATA) - 1), st.binary(max_size=3)))
def test_damaged_data_decode_to_something_or_are_refused(data):
    if isinstance(data, tuple):
        data = DATA[: data[0]] + data[1] + DATA[data[0] + len(data[1]) :]
    shapes = [SMALL.shape] * 2
    try:
        decoded = decode_codes(data, shapes)
    except ValueError:
        decoded = None
    if decoded is not None:
        assert [codes.shape for codes in decoded] == shapes
    try:
        numbers = decode_fields(data, 50, [1, 8, 3])
    except ValueError:
        return
    assert numbers.max() < 1 << 12


# -- their bits stay ---------------------------------------------------------------------------------------------------

COUNTING = np.arange(36).reshape(2, 2, 3, 3)
GOLDEN = {
    "ternary": ([COUNTING * 7 % 3 - 1, COUNTING * COUNTING % 3 - 1], "9e70ac50a179d5ed50"),
    "linear": ([(COUNTING * COUNTING % 7 // 3 - 1).reshape(4, 9)], "95537aa1d3"),
    "flags and signs": ([(COUNTING % 5 > 1).ravel() * 1, COUNTING % 7 // 4 * 2 - 1], "7e71cc7e53cd76c532d3f71e"),
    "4 bits": ([COUNTING * 5 % 15 - 7], "6c0b6eb9f70517e54cc924"),
    "16 bits": (
        [COUNTING * 1000 - 9999],
        "3c0007557e057def38acec918c4fbf4f498ecba04d64409f33630a20319cc8c3fb7a61b4838625a3776b17383cb0609639c69b4afd180aecf1f8f7c32a32e0de259a86bfba9d0d0fca37f48b08c2",
    ),
}
GOLDEN_FIELDS = {
    "symbols": (COUNTING.ravel() * 7 % 5, [3], "75bb71b7c81dd2ffc84a223054"),
    "floats": (
        np.float32(COUNTING.ravel()).view(np.uint32),
        FIELDS["fp32"],
        "79fbd742f5c494208b471c8dcfbf293d93222b53e45e36c28e5c80161d81156d3bc45ddc72c00d9b71a0a830d21aa5e67f8bfd1aa0",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_codes_keep_their_bytes(coder, name):
    layers, data = GOLDEN[name]
    assert encode_codes(layers).hex() == data


@pytest.mark.parametrize("name", GOLDEN_FIELDS)
def test_fields_keep_their_bytes(coder, name):
    numbers, widths, data = GOLDEN_FIELDS[name]
    assert encode_fields(numbers, widths).hex() == data
