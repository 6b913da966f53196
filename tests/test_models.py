"""Networks: shapes, what they are made of, published weight counts, binary activations, released weights."""

import operator
import re
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import fx, nn

from sparsign.models.alexnet import alexnet
from sparsign.models.chain import ORDERS
from sparsign.models.checks import check_bf16_gradients, check_takes
from sparsign.models.lenet import lenet5
from sparsign.models.mobilenet import mobilenet_v2
from sparsign.models.nin import nin
from sparsign.models.pretrained import load_pretrained
from sparsign.models.react import ChannelShift
from sparsign.models.resnet import resnet18, resnet20, resnet32, resnet34, resnet44, resnet50, resnet56
from sparsign.models.shortcuts import PadShortcut
from sparsign.models.sign import Sign
from sparsign.models.vgg import vgg11, vgg16

CONFIGS = Path(__file__).parents[1] / "configs" / "model"
BINARY = (resnet18, resnet20, resnet56, vgg11, vgg16, nin)
FLOAT_ONLY = (resnet50, lenet5, alexnet, mobilenet_v2)
CASES = [
    *((build, form, 32, 3, {}) for build in BINARY for form in ("float", "fbin")),
    *((build, "wbin", 32, 1, {}) for build in FLOAT_ONLY),
    *((resnet20, "fbin", 32, 3, {"block": block}) for block in ("plain", "react", "resnet_e", "preact")),
    *((resnet20, "fbin", 32, 3, {"shortcut": shortcut}) for shortcut in ("sign_conv", "duplicate")),
    *((build, form, 32, 3, {}) for build in (resnet32, resnet44, resnet34) for form in ("float", "fbin")),
    (resnet34, "wbin", 96, 3, {}),
    (resnet20, "fbin", 30, 3, {"block": "plain"}),
    (resnet18, "fbin", 64, 3, {"block": "preact", "sign_gradient": "approx"}),
    (resnet18, "float", 96, 1, {}),
    (resnet18, "fbin", 96, 3, {}),
    (resnet20, "float", 28, 1, {}),
    (vgg11, "fbin", 28, 1, {}),
    (vgg11, "fbin", 28, 1, {"order": "norm_first"}),
    (nin, "fbin", 32, 3, {"order": "norm_first", "dropout": 0}),
    (nin, "float", 32, 3, {"dropout": 0.0}),
    (nin, "fbin", 28, 1, {}),
    (lenet5, "float", 28, 1, {}),
    (alexnet, "float", 96, 3, {"batch_norm": False}),
    (mobilenet_v2, "float", 96, 3, {}),
]
ALLOWED_MODULES = (
    *(nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.MaxPool2d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Identity, nn.PReLU, Sign, PadShortcut, ChannelShift),
)
ALLOWED_FUNCTIONS = {operator.add, torch.add, torch.cat, torch.flatten}


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, ALLOWED_MODULES)


@pytest.mark.parametrize(
    ("build", "form", "size", "channels", "options"),
    CASES,
    ids=lambda value: getattr(value, "__name__", None) or (str(value) if value != {} else "plain"),
)
def test_every_network_gives_logits_and_is_made_of_the_allowed_layers(build, form, size, channels, options):
    model = build(7, channels, size, form, **options)  # in training mode: batch norm needs statistics before a sign
    with torch.no_grad():
        logits = model(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert (logits[0] != logits[1]).any()
    graph = LeafTracer().trace(model)
    for node in graph.nodes:
        if node.op == "call_module":
            assert isinstance(model.get_submodule(node.target), ALLOWED_MODULES), node
        elif node.op == "call_function":
            assert node.target in ALLOWED_FUNCTIONS, node
        else:
            assert node.op in ("placeholder", "output"), node


def conv_weights(model):
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d))


def all_weights(model):
    return sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1)


def test_published_weight_counts():
    assert round(conv_weights(resnet18(10, 3, 32, "float")) / 1e6, 2) == 11.16
    assert round(conv_weights(vgg11(10, 3, 32, "float")) / 1e6, 2) == 9.22
    assert round(conv_weights(nin(10, 3, 32, "float")) / 1e6, 3) == 0.966
    assert all_weights(lenet5(10, 1, 28, "float")) == 430_500
    for build, millions in ((resnet20, 0.27), (resnet32, 0.46), (resnet44, 0.66), (resnet56, 0.85)):
        assert round(all_weights(build(10, 3, 32, "float")) / 1e6, 2) == millions  # ResNet paper, table 6
    with torch.device("meta"):
        assert round(sum(p.numel() for p in resnet34(1000, 3, 224, "float").parameters()) / 1e6, 1) == 21.8
    with torch.device("meta"):
        assert round(all_weights(alexnet(1000, 3, 224, "float")) / 1e6, 1) == 62.4


def signed_convs(model):
    """Convs whose input is +1 / -1, found by running the network, not by looking at its code."""
    found, handles = [], []

    def look(module, inputs):
        if inputs[0].abs().eq(1).all():
            found.append(module)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(module.register_forward_pre_hook(look))
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, 32, 32))
    return found


@pytest.mark.parametrize(
    ("build", "options", "convs", "filters"),
    [
        *((vgg11, {"order": order}, 7, 2688) for order in ORDERS),
        *((nin, {"order": order}, 7, 1216) for order in ORDERS),
        (resnet18, {}, 16, 3840),
        (resnet18, {"block": "preact"}, 19, 3840 + 896),
        (resnet18, {"block": "plain"}, 19, 3840 + 896),
        (resnet18, {"block": "react", "shortcut": "duplicate"}, 16, 3840),
        (resnet20, {}, 18, 6 * (16 + 32 + 64)),
    ],
)
def test_published_counts_of_layers_that_read_binary_activations(build, options, convs, filters):
    found = signed_convs(build(10, 3, 32, "fbin", **options))
    assert (len(found), sum(conv.out_channels for conv in found)) == (convs, filters)


def test_float_forms_have_no_binary_activation():
    for build in (resnet20, vgg11, nin):
        assert not signed_convs(build(10, 3, 32, "wbin"))


def test_bireal_keeps_a_shortcut_around_every_conv():
    """With all 3x3 block convs silenced, the image still reaches the logits, and only linearly after the stem."""
    model = resnet20(10, 3, 32, "fbin", block="bireal").eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and name.endswith(("bn1", "bn2")) and "layer" in name:
            nn.init.zeros_(module.weight)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        zero, one, minus = (model(scale * image) for scale in (0.0, 1.0, -2.0))
    assert (one - zero).abs().min() > 0
    torch.testing.assert_close(minus - zero, -2 * (one - zero), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("block", "gradient"),
    [
        ("bireal", "approx"),
        ("react", "approx"),
        ("plain", "hardtanh"),
        ("resnet_e", "hardtanh"),
        ("preact", "hardtanh"),
    ],
)
def test_sign_gradient_is_the_blocks_own_unless_asked_for(block, gradient):
    def gradients(**options):
        model = resnet20(10, 3, 32, "fbin", block=block, **options)
        return {m.gradient for m in model.modules() if isinstance(m, Sign)}

    assert gradients() == {gradient}
    assert gradients(sign_gradient="approx") == {"approx"}


def sequence(model):
    """The kinds of the layers of a chain, in order, as letters."""
    letters = {nn.Conv2d: "C", nn.BatchNorm2d: "B", nn.ReLU: "R", Sign: "S", nn.Dropout: "D"}
    return "".join(letters.get(type(layer), "P") for layer in model.features)


def test_orders_of_the_binary_chains():
    """As written in the papers' code: B = BN, S = sign, C = conv, R = ReLU, P = pool, D = dropout."""
    assert sequence(nin(10, 3, 32, "fbin", order="norm_first")) == (
        "CBR" "BSCR" "BSCRP" "BSDCR" "BSCR" "BSCRP" "BSDCR" "BSCR" "B"
    )  # fmt: skip
    assert sequence(nin(10, 3, 32, "fbin")) == "CBS" "CBS" "CPBS" "DCBS" "CBS" "CPBS" "DCBS" "CBR"  # fmt: skip
    assert sequence(vgg11(10, 3, 32, "fbin", order="norm_first")) == (
        "CBRP" "BSCRP" "BSCR" "BSCRP" "BSCR" "BSCRP" "BSCR" "BSCRP" "B"
    )  # fmt: skip
    assert sequence(vgg11(10, 3, 28, "float")) == "CBRP" "CBRP" "CBR" "CBRP" "CBR" "CBRP" "CBR" "CBR"  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("build", [vgg11, nin])
def test_pools_read_real_values_because_pooled_signs_lose_information(build, order):
    model, seen = build(10, 3, 32, "fbin", order=order), []
    for module in model.modules():
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].unique().numel()))
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    assert len(seen) == (5 if build is vgg11 else 2) and min(seen) > 2


@pytest.mark.parametrize("form", ["float", "fbin"])
def test_stages_of_a_residual_net_halve_the_image(form):
    model, sides = resnet20(10, 3, 32, form), []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda *hook: sides.append(hook[2].shape[1:]))
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    assert sides == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_option_a_puts_the_new_channels_on_both_sides():
    x = torch.ones(1, 16, 4, 4)
    y = resnet20(10, 3, 32, "float").layer2[0].downsample(x)
    assert y[0, :, 0, 0].tolist() == [0.0] * 8 + [1.0] * 16 + [0.0] * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sign_counts_zero_as_positive_and_keeps_the_dtype(dtype):
    out = Sign()(torch.tensor([-2.0, -1e-30, -0.0, 0.0, 1e-30, 5.0], dtype=dtype))
    assert out.dtype == dtype
    assert out.tolist() == [-1, -1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [("hardtanh", [0, 0, 1, 1, 1, 1, 0, 0]), ("approx", [0, 0, 0.5, 1.5, 2, 1, 0, 0])],
)
def test_sign_gradients_worked_out_by_hand(gradient, expected):
    x = torch.tensor([-1.5, -1.0, -0.75, -0.25, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    Sign(gradient)(x).backward(torch.full((8,), 3.0))
    assert x.grad.tolist() == [3 * value for value in expected]


def test_sign_under_autocast():
    conv = nn.Conv2d(2, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(Sign("approx")(conv(torch.randn(1, 2, 8, 8))))
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert conv.weight.grad.isfinite().all()


def test_pad_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    x = torch.arange(2 * 25.0).view(1, 2, 5, 5)
    y = PadShortcut(2, 1, 2)(x)
    assert y.shape == (1, 5, 3, 3)
    assert y[0, 2].tolist() == [[25, 27, 29], [35, 37, 39], [45, 47, 49]]
    assert y[0, [0, 3, 4]].abs().max() == 0


def test_initial_weights_are_balanced_in_sign():
    for module in resnet18(10, 3, 32, "fbin").modules():
        if isinstance(module, nn.Conv2d):
            assert 0.4 < (module.weight > 0).float().mean() < 0.6


@pytest.mark.parametrize(
    ("build", "arguments", "options", "words"),
    [
        (lenet5, (10, 1, 28, "fbin"), {}, "model.form=fbin"),
        (resnet50, (10, 3, 32, "fbin"), {}, "model.form=fbin"),
        (resnet20, (10, 3, 32, "double"), {}, "expected float, wbin, fbin"),
        (resnet20, (10, 3, 32, "fbin"), {"blok": "preact"}, "did you mean block"),
        (resnet20, (10, 3, 32, "fbin"), {"block": "basic"}, "expected react, bireal, plain, resnet_e"),
        (resnet20, (10, 3, 32, "fbin"), {"block": "preact", "shortcut": "conv"}, "shortcut=conv is not possible"),
        (resnet20, (10, 3, 30, "fbin"), {"block": "plain", "shortcut": "duplicate"}, "multiple of 4"),
        (vgg11, (10, 3, 32, "float"), {"sign_gradient": "approx"}, "vgg11 in this form"),
        (resnet18, (10, 3, 28, "fbin"), {}, "multiple of 8"),
        (vgg11, (10, 3, 8, "float"), {}, "at least 16"),
        (alexnet, (10, 3, 32, "float"), {"batch_norm": "yes"}, "expected True, False"),
        (
            nin,
            (10, 3, 32, "fbin"),
            {"order": "bn"},
            "order=bn is not possible for nin; expected conv_first, norm_first",
        ),
        (nin, (10, 3, 32, "float"), {"dropout": 0.3}, "expected 0.5, 0.0"),
    ],
)
def test_what_a_network_cannot_be_is_refused_in_one_line(build, arguments, options, words):
    with pytest.raises(ValueError, match=words) as error:
        build(*arguments, **options)
    assert "\n" not in str(error.value)


def test_a_crop_size_that_a_network_cannot_take_is_refused_before_training():
    for build in (resnet20, vgg11, nin):
        model = build(10, 3, 32, "fbin")
        check_takes(model, 3, 24, "dataset.crop_size")
        assert model.training
    with pytest.raises(ValueError, match=r"dataset\.crop_size=24 does not suit"):
        check_takes(lenet5(10, 1, 28, "float"), 1, 24, "dataset.crop_size")


def released(model, path, **changes):
    """A checkpoint in the usual released layout: "module." prefix, classifier called linear, no batch counters."""
    state = {
        "module." + name.replace("fc.", "linear."): torch.rand_like(value) + 0.5
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save({"state_dict": {**state, **changes}, "best_prec1": 91.7}, path)
    return state


def test_released_checkpoint_is_loaded_into_every_weight(tmp_path):
    model = resnet20(10, 3, 32, "float")
    state = released(model, tmp_path / "net.th")
    load_pretrained(model, tmp_path / "net.th")
    own = model.state_dict()
    assert torch.equal(own["fc.weight"], state["module.linear.weight"])
    assert all(torch.equal(own[name[7:]], value) for name, value in state.items() if "linear" not in name)


def test_released_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "net.th"
    with pytest.raises(FileNotFoundError, match=r"net\.th"):
        load_pretrained(resnet20(10, 3, 32, "float"), path)
    released(resnet20(10, 3, 32, "float"), path)
    with pytest.raises(ValueError, match=r"fc\.weight is \[10, 64\], expected \[100, 64\]"):
        load_pretrained(resnet20(100, 3, 32, "float"), path)
    with pytest.raises(ValueError, match="missing"):
        load_pretrained(resnet56(10, 3, 32, "float"), path)
    released(resnet20(10, 3, 32, "float"), path, extra=torch.zeros(1))
    with pytest.raises(ValueError, match=r"unknown 1 \(extra\)"):
        load_pretrained(resnet20(10, 3, 32, "float"), path)


def test_a_stride_past_the_map_is_refused_under_bf16():
    def net(stride, padding, kernel=3):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 8, kernel, stride, padding)).train()

    ends = net(3, 1)  # 4x4 -> 2x2, strided over by 3
    with pytest.raises(ValueError, match=r"^trainer.precision=bf16: 2 strides \(3, 3\) over a map of 2x2, and"):
        check_bf16_gradients(ends, 3, [8, 4])
    assert ends.training and not ends[2]._forward_pre_hooks and not ends[1].num_batches_tracked
    for one_way in ((3, 1), (1, 3)):
        with pytest.raises(ValueError, match=re.escape(f"strides {one_way}")):
            check_bf16_gradients(net(one_way, 1), 3, [4])
    for fits, side in ((net(3, 1), 5), (net(2, 1), 4), (net(2, 0, kernel=1), 4)):
        check_bf16_gradients(fits, 3, [side])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.sampled_from([1, 2, 3, 5, 7]), st.integers(1, 4), st.integers(0, 3), st.integers(0, 99))
def test_bf16_gradients_that_are_not_refused_are_right(side, kernel, stride, padding, seed):
    """Of torch, which another release may change: against its own fp32."""
    assume(padding < kernel <= side + 2 * padding)
    torch.manual_seed(seed)
    conv, images = nn.Conv2d(8, 16, kernel, stride, padding, bias=False), torch.randn(4, 8, side, side)
    try:
        check_bf16_gradients(nn.Sequential(conv), 8, [side])
    except ValueError:
        assert stride > side
        return
    upstream, found = torch.randn_like(conv(images)), []
    for bf16 in (True, False):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = conv(images)
        y.backward(upstream.to(y.dtype))
        found.append(conv.weight.grad)
    assert (found[0] - found[1]).abs().max() <= 0.05 * found[1].abs().max()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_unreadable_weights_file_is_one_clear_line(tmp_path, content):
    path = tmp_path / "net.th"
    if content is None:
        torch.save({"state_dict": {"conv1.weight": print}}, path)  # a pickle that asks for a function
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"net\.th") as error:
        load_pretrained(resnet20(10, 3, 32, "float"), path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_build_their_network(path):
    root = {"compressor": {"form": "float"}, "dataset": {"num_classes": 6, "channels": 3, "image_size": 64}}
    config = OmegaConf.to_container(OmegaConf.create({**root, "model": OmegaConf.load(path)}), resolve=True)["model"]
    assert config.pop("name") == path.stem
    assert config.pop("pretrained") is None
    with torch.device("meta"):
        options = {name: value for name, value in config.pop("options").items() if value is not None}
        model = instantiate(config, **options)
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 6)
