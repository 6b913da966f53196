"""The contract of all methods: what the loss may see, how masks are found, what the packed file is told."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sparsign.compressors.admm import ADMM
from sparsign.compressors.base import Compressor, Recipe, Stage
from sparsign.compressors.bnn import BNN
from sparsign.compressors.msf import MSF
from sparsign.compressors.parts.transforms import ChannelMask, Mask, WeightMask, attach, encode_layer, find, latent
from sparsign.compressors.stq_a import STQA
from sparsign.compressors.stq_b import STQB
from sparsign.compressors.subsidiary import Subsidiary
from sparsign.compressors.wpc import WPC
from sparsign.evaluation.theory import SCALED
from sparsign.models.lenet import lenet5
from sparsign.models.resnet import resnet20
from sparsign.pipeline.module import StageModule


class Pulled(Compressor):
    def penalty(self, model: nn.Module, stage: Stage) -> Tensor:
        return 0.1 * model.weight.square().sum()


class TwoViews(Compressor):
    """Rates the batch and its mirror image, and pulls the two answers together."""

    def loss(self, model, stage, batch, logits, task):
        images, labels = batch
        mirrored = model(images.flip(-1))
        assert labels.shape == (len(images),) and stage.name == "finetune"
        return task(logits) + task(mirrored), (logits - mirrored).square().mean()


def module(compressor, net, **options):
    rows = []
    found = StageModule(net, compressor, Stage("finetune"), Recipe(1), 0, rows.append, **options)
    found.log = lambda *_, **__: None
    found._sums, found._images = torch.zeros(3), 0
    return found


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 7, generator=generator), torch.tensor([0, 1, 2, 1, 0])


@pytest.mark.parametrize("distill", [0.0, 0.3])
def test_the_default_loss_is_cross_entropy_distillation_and_penalty(batch, distill):
    torch.manual_seed(0)
    net, teacher = nn.Linear(7, 3), nn.Linear(7, 3)
    step = module(Pulled(), net, teacher=teacher, distill=distill, temperature=4.0)
    loss = step.training_step(batch, 0)

    logits, target = net(batch[0]).double(), (teacher(batch[0]).double() / 4).softmax(1)
    task = nn.functional.cross_entropy(logits, batch[1])
    divergence = (target * (target.log() - (logits / 4).log_softmax(1))).sum(1).mean()
    task = (1 - distill) * task + distill * 16 * divergence
    penalty = 0.1 * net.weight.double().square().sum()
    assert loss.item() == pytest.approx((task + penalty).item(), rel=1e-5)
    logged = step._sums / step._images
    assert logged[:2].tolist() == pytest.approx([task.item(), penalty.item()], rel=1e-5)


def test_a_method_may_see_the_batch_and_run_the_model_again(batch):
    torch.manual_seed(0)
    net = nn.Linear(7, 3)
    step = module(TwoViews(), net)
    loss = step.training_step(batch, 0)
    loss.backward()

    again = nn.Linear(7, 3)
    again.load_state_dict(net.state_dict())
    first, second = again(batch[0]), again(batch[0].flip(-1))
    expected = sum(nn.functional.cross_entropy(x, batch[1]) for x in (first, second)) + (first - second).pow(2).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(net.weight.grad, again.weight.grad)


def test_the_one_transform_of_a_kind_is_found_wherever_it_stands():
    layer = nn.Conv2d(4, 6, 3)
    attach(layer, ChannelMask((6, 4, 1, 1)), WeightMask((6, 4, 3, 3)))
    assert find(layer, ChannelMask).mask.shape == (6, 4, 1, 1) and find(layer, WeightMask).mask.dim() == 4
    with pytest.raises(KeyError, match="2 Mask on ParametrizedConv2d, expected one"):
        find(layer, Mask)
    with pytest.raises(KeyError, match="no ChannelMask on Linear"):
        find(nn.Linear(2, 2), ChannelMask)
    shared = Mask((2, 2))
    attach(twice := nn.Linear(2, 2), shared, shared)
    assert find(twice, Mask) is shared


def test_a_method_says_itself_how_its_ratio_is_counted():
    assert WPC(group=32).accounting() == {"pfr": None, "pfr_unit": "group", "group": 32}
    assert STQA(pfr=0.3).accounting() == {"pfr": 0.3, "pfr_unit": "filter"}
    assert STQB(pfr=0.0).accounting() == {"pfr": None, "pfr_unit": "kernel"}
    assert ADMM(structure="column", pfr=0.25).accounting() == {"pfr": 0.25, "pfr_unit": "column"}
    assert BNN().accounting() == {"pfr": None, "pfr_unit": "filter"}


@pytest.mark.parametrize("make", [lambda: MSF(pfr=0.25), lambda: Subsidiary(alpha_s=1e-3)])
def test_subsidiary_and_msf_have_centred_weights_with_their_mean_as_scale(make):
    """Levels -a_k, 0, a_k, a_k = mean|W_k| of the centred latent weights (authors' code); 73x = 58 / (1 - 0.214)."""
    torch.manual_seed(0)
    model, method = resnet20(10, 3, 16, "fbin"), make()
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 10
    method.prepare(model, images[:1])
    pretrain = method.stages(model)[0]
    method.start(model, pretrain)
    layer = model.layer2[0].conv2
    optimizer = torch.optim.Adam(method.parameters(model, pretrain), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        task = partial(nn.functional.cross_entropy, target=labels)
        method.loss(model, pretrain, (images, labels), model(images), task)[0].backward()
        optimizer.step()
        assert latent(layer).mean(dim=1).abs().max() > 1e-3
        method.after_step(model, pretrain)
        assert latent(layer).mean(dim=1).abs().max() < 1e-6
    for stage in method.stages(model)[1:2]:
        method.start(model, stage)
        method.finish(model, stage)
    weight, alpha = layer.weight.detach(), latent(layer).detach().double().abs().mean(dim=(1, 2, 3))
    assert weight.any()
    for k in range(len(weight)):
        assert all(v in (0, pytest.approx(alpha[k].item(), rel=1e-5)) for v in weight[k].abs().unique().tolist())
    codes, scale = encode_layer(layer)
    assert set(codes.unique().tolist()) <= {-1, 0, 1} and scale.shape == (len(weight), 1, 1, 1)
    assert int(SCALED / (1 - 0.214)) == 73


def test_an_exempt_count_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"^compressor\.exempt_layers=18: expected less than 18, the binary convs"):
        STQA(exempt_layers=18).prepare(resnet20(10, 3, 16, "fbin"), torch.zeros(1, 3, 16, 16))
    STQA(exempt_layers=18, pfr=0.0).prepare(resnet20(10, 3, 16, "fbin"), torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("make", [lambda: MSF(float_layers=["last"]), lambda: Subsidiary(float_layers=["last"])])
def test_a_layer_of_one_input_is_not_centred_away(make):
    torch.manual_seed(0)
    model, method = lenet5(10, 1, 28, "wbin"), make()
    method.prepare(model, torch.randn(1, 1, 28, 28))
    method.start(model, method.stages(model)[0])
    assert latent(model.conv1).abs().min() > 0 and latent(model.conv2).mean(dim=1).abs().max() < 1e-6


def test_wpc_from_scratch_has_no_float_stage_and_the_labs_rate():
    assert WPC(from_scratch=True, finetune=True).recipe(Stage("finetune")) == WPC().recipe(Stage("finetune"))
    method = WPC(from_scratch=True)
    assert [stage.name for stage in method.stages(nn.Identity())] == ["quantize"]
    recipe = method.recipe(Stage("quantize"))
    assert (recipe.lr, recipe.epochs) == (0.1, 200)
    assert [m * recipe.epochs for m in recipe.milestones] == [80, 120, 160]
    with pytest.raises(ValueError, match=r"compressor\.from_scratch=true: expected order=joint"):
        WPC(from_scratch=True, order="prune_then_ternarise")
