"""Networks that cannot be traced, Mask R-CNN above all: compressed, packed without a graph, restored."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from tiny_nets import INPUT, build
from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d

from sparsign.compressors.parts.transforms import Mask, UnitNorm, attach, encode_layer, transformed
from sparsign.compressors.parts.unit_ternary import UnitTernary
from sparsign.compressors.ptq import PTQ
from sparsign.kernels.engine import load_engine
from sparsign.models.detection import maskrcnn_resnet50_fpn
from sparsign.models.graph import UntraceableError, batchnorm_after
from sparsign.packing.file import PackedFileError, dumps, loads, read, write
from sparsign.packing.layers import pack_layers, restore_layers
from sparsign.packing.size import total_size
from sparsign.packing.spec import LayerCodes, Node, PackedModel
from sparsign.packing.structure import Structure, structure
from sparsign.packing.trace import to_packed

PREDICTORS = ["box_predictor", "mask_predictor", r"rpn\.head\.(cls_logits|bbox_pred)"]
PFR = 0.9


def mask_rcnn() -> nn.Module:
    """Mask R-CNN with one block per ResNet-50 stage and a box head of 64 features, so that the test takes seconds."""
    model = maskrcnn_resnet50_fpn(5, 3, 64, "float")
    for stage in (model.backbone.body[f"layer{k}"] for k in range(1, 5)):
        del stage[1:]
    model.roi_heads.box_head = TwoMLPHead(256 * 7 * 7, 64)
    model.roi_heads.box_predictor = FastRCNNPredictor(64, 5)
    return model


class Loop(nn.Module):
    """Takes a list of images, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.up, self.frozen = nn.ConvTranspose2d(4, 2, 2), FrozenBatchNorm2d(2)
        self.fc = nn.Linear(2, 3)
        self.register_buffer("index_of_anchors", torch.rand(5))

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        features = [self.frozen(self.up(self.bn(self.conv(image[None])))) for image in images]
        return [self.fc(x.mean((2, 3))) * self.index_of_anchors.sum() for x in features]


FLOATS = 4 * 3 * 9 + 4 * 4 + (4 * 2 * 4 + 2) + 4 * 2 + (3 * 2 + 3) + 5
"""All of Loop's: conv, BN with statistics, transposed conv with bias, frozen BN, linear with bias, buffer."""


def effective(model: nn.Module) -> dict[str, torch.Tensor]:
    """The floats of the state dict that the model would have without its transforms, from its forward weights."""
    state = {name: t for name, t in model.state_dict().items() if ".parametrizations." not in name}
    state |= {f"{name}.weight": layer.weight.detach() for name, layer in transformed(model)}
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def compressed(model: nn.Module, **options) -> nn.Module:
    compressor = PTQ(pfr=PFR, **options)
    compressor.prepare(model, torch.zeros(1, 3, 64, 64))
    for stage in compressor.stages(model):
        compressor.start(model, stage)
        compressor.finish(model, stage)
    return model.eval()


def test_mask_rcnn_survives_compression_packing_and_reloading(tmp_path):
    torch.manual_seed(0)
    model = compressed(mask_rcnn(), float_layers=["first", *PREDICTORS])
    with torch.no_grad():  # statistics and gains as training would leave them: nothing at its initial value
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
            elif isinstance(module, UnitTernary):
                module.gain.mul_(1.1)
    size = write(pack_layers(model, encode_layer, {"name": "mask r-cnn"}), tmp_path / "packed")
    packed = read(tmp_path / "packed")
    restored = mask_rcnn().eval()
    restore_layers(packed, restored)

    expected = effective(model)
    state = {name: tensor for name, tensor in restored.state_dict().items() if tensor.is_floating_point()}
    assert state.keys() == expected.keys()
    assert all(same_bits(state[name], expected[name]) for name in expected)
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        wanted, found = model([image])[0], restored([image])[0]
    assert len(wanted["boxes"]) and wanted["masks"].shape[1:] == (1, 64, 64)
    assert all(torch.equal(wanted[key], found[key]) for key in ("boxes", "labels", "scores", "masks"))

    layers = {n: m for n, m in restored.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    floats = {"backbone.body.conv1", "rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_predictor.cls_score"}
    floats |= {"roi_heads.box_predictor.bbox_pred", "roi_heads.mask_predictor.mask_fcn_logits"}
    assert {name for name, node in packed.layers().items() if node.codes.codes is None} == floats
    zeros = total = 0
    for name in layers.keys() - floats:
        filters = layers[name].weight.detach().flatten(1).abs()
        top = filters.max(dim=1, keepdim=True).values
        assert bool(((filters == 0) | (filters == top)).all()), f"{name} is not ternary"
        zeros, total = zeros + int((filters == 0).sum()), total + filters.numel()
    assert zeros / total == pytest.approx(PFR, abs=1e-3)
    fp32 = 4 * sum(tensor.numel() for tensor in expected.values())
    assert fp32 / size > 8
    assert total_size(packed).float_bytes == fp32
    assert packed.meta == {"name": "mask r-cnn"}


def test_ptq_gives_every_layer_of_an_untraceable_network_its_gain():
    model = compressed(Loop(), float_layers=[])
    gains = {name: layer.parametrizations.weight[2].gain for name, layer in transformed(model)}
    assert gains.keys() == {"conv", "fc"} and all(gain is not None for gain in gains.values())
    with pytest.raises(UntraceableError, match="Loop: its forward cannot be traced"):
        batchnorm_after(model)


def test_transforms_of_float_layers_are_applied_and_integers_stay_at_home():
    torch.manual_seed(0)
    model = Loop()
    attach(model.conv, Mask((4, 1, 1, 1)), UnitNorm())
    model.conv.parametrizations.weight[0].mask[2] = 0
    model.bn.num_batches_tracked += 7
    packed = loads(dumps(pack_layers(model, encode_layer)))
    assert packed.layers()["conv"].codes.codes is None
    restored = Loop()
    restore_layers(packed, restored)
    state = restored.state_dict()
    assert all(same_bits(state[name], tensor) for name, tensor in effective(model).items())
    assert not restored.conv.weight[2].any() and restored.bn.num_batches_tracked == 0


def test_size_counts_every_float_and_the_codes_bits():
    model = Loop()
    codes = torch.zeros(4, 3, 3, 3, dtype=torch.int16)
    codes[0], codes[1, 2, 0, 0] = 1, -1
    model.conv.weight.data.copy_(0.5 * codes)
    packed = pack_layers(model, lambda layer: (codes, torch.tensor(0.5)) if layer is model.conv else None)
    size, conv = total_size(packed), total_size(packed, conv_only=True)
    assert size.original_parameters == size.parameters == FLOATS
    assert size.theoretical_bits == 32 * (FLOATS - 108) + 2 * 108 + 32
    assert (conv.original_parameters, conv.nonzeros, conv.theoretical_bits) == (108, 28, 2 * 108 + 32)
    assert structure(packed) == Structure(filters=4, filters_removed=2, kernels=12, kernels_removed=8)


def float_pack(model: nn.Module) -> PackedModel:
    return pack_layers(model, lambda layer: None)


def test_cut_rows_and_columns_come_back_as_zeros():
    packed = float_pack(Loop())
    node = packed.layers()["fc"]
    kept = np.array([[5.0], [7.0]], np.float32)
    node.codes = LayerCodes((3, 2), np.array([0, 2]), np.array([1]), floats=kept)
    model = Loop()
    restore_layers(loads(dumps(packed)), model)
    assert model.fc.weight.tolist() == [[0, 5], [0, 0], [0, 7]]


@pytest.mark.parametrize(
    ("node", "key", "value", "problem"),
    [
        ("fc", "bias", None, r"lacks 1 tensors of Loop, such as fc\.bias"),
        ("frozen", "running_var", None, r"lacks 1 tensors of Loop, such as frozen\.running_var"),
        ("fc", "gain", np.ones(3, np.float32), r"has 1 tensors that Loop lacks, such as fc\.gain"),
        ("fc", "bias", np.ones(4, np.float32), r"fc\.bias has shape \[4\].*\[3\]"),
        ("fc", "bias", np.ones(1, np.float32), r"fc\.bias has shape \[1\].*\[3\]"),
    ],
    ids=["missing", "missing buffer", "extra", "shape", "broadcast"],
)
def test_tensors_that_do_not_fit_are_refused_and_leave_the_network_alone(node, key, value, problem):
    packed, model = float_pack(Loop()), Loop()
    tensors = next(n for n in packed.nodes if n.name == node).tensors
    tensors.pop(key, None)
    if value is not None:
        tensors[key] = value
    before = deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=problem) as error:
        restore_layers(packed, model)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_weight_of_another_shape_is_refused():
    packed, model = float_pack(Loop()), Loop()
    model.fc.weight = nn.Parameter(torch.ones(3, 4))
    with pytest.raises(ValueError, match=r"fc\.weight has shape \[3, 2\].*\[3, 4\]"):
        restore_layers(packed, model)


def test_a_graph_is_not_restored():
    model = build("chain", 0)
    with pytest.raises(ValueError, match="has a graph"):
        restore_layers(to_packed(model, lambda layer: None, INPUT), model)


def test_a_network_with_transforms_is_no_place_to_restore_to():
    model = Loop()
    attach(model.fc, Mask((3, 1)))
    with pytest.raises(ValueError, match="layer fc has weight transforms"):
        restore_layers(float_pack(Loop()), model)


def layer(**changes) -> Node:
    return Node(**{"op": "layer", "name": "a", "tensors": {"x": np.ones(2, np.float32)}, **changes})


WEIGHT = LayerCodes((1, 1), np.arange(1), np.arange(1), floats=np.ones((1, 1), np.float32))


@pytest.mark.parametrize(
    ("packed", "problem"),
    [
        (PackedModel([layer(), layer(name="b", inputs=("a",))], (), None), "'b'.* has 1 inputs"),
        (PackedModel([layer(tensors={})], (), None), "'a'.* holds nothing"),
        (PackedModel([layer(tensors={"x": np.ones(2)})], (), None), "x is float64"),
        (PackedModel([layer(tensors={"x": np.full(2, np.nan, np.float32)})], (), None), "x holds NaN"),
        (PackedModel([layer(tensors={"weight": np.ones(2, np.float32)}, codes=WEIGHT)], (), None), "two weights"),
        (PackedModel([layer(), layer()], (), None), "its name is taken"),
        (PackedModel([layer(), Node("relu", "b", ("a",))], (), None), "'b'.*layers alone"),
        (PackedModel([Node("input", "x"), layer()], (3, 4, 4), "x"), "'a'.*layers alone"),
        (PackedModel([Node("input", "x")], (), None), "'x'.*layers alone"),
        (PackedModel([layer()], (3, 4, 4), None), "without an output"),
        (PackedModel([layer()], (), "a"), "expected \\[C, H, W\\]"),
    ],
    ids=["inputs", "empty", "dtype", "nan", "weights", "names", "relu", "mixed", "graph", "shape", "output"],
)
def test_layers_that_make_no_sense_are_refused(packed, problem, tmp_path):
    with pytest.raises(ValueError, match=problem):
        packed.validate()
    with pytest.raises(ValueError):
        write(packed, tmp_path / "packed")


def test_a_file_of_layers_that_names_an_output_is_refused():
    packed = float_pack(Loop())
    packed.output = packed.nodes[0].name
    with pytest.raises(PackedFileError, match=r"expected \[C, H, W\]"):
        loads(dumps(packed))


def test_no_engine_runs_layers_without_a_graph():
    with pytest.raises(ValueError, match="layers without a graph"):
        load_engine(float_pack(Loop()))
