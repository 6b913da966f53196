"""Residual blocks whose 3x3 convs read binary activations. Weights stay ordinary: a compressor binarises them."""

from torch import Tensor, nn

from sparsign.models.react import rprelu, rsign
from sparsign.models.shortcuts import ShortcutKind, build_shortcut
from sparsign.models.sign import Sign, SignGradient

BLOCKS = ("react", "bireal", "plain", "resnet_e", "preact")


class BiRealBlock(nn.Module):
    """Two one-conv units, each x -> Sign -> conv3x3 -> BN -> + shortcut, without ReLU (Bi-Real Net: paper).

    [N, inputs, H, W] -> [N, outputs, H / stride, W / stride]. `shortcut` says what the first unit's shortcut is where
    the size changes (see `build_shortcut`); the paper's is `conv`.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, gradient: SignGradient, shortcut: ShortcutKind = "conv"
    ) -> None:
        super().__init__()
        self.sign1 = Sign(gradient)
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.sign2 = Sign(gradient)
        self.conv2 = _conv3x3(outputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = build_shortcut(shortcut, inputs, outputs, stride, gradient)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(self.sign1(x))) + self.downsample(x)
        return self.bn2(self.conv2(self.sign2(x))) + x


class ReactBlock(nn.Module):
    """Two one-conv units, each x -> RSign -> conv3x3 -> BN -> + shortcut -> RPReLU (ReActNet: paper).

    Shapes and `shortcut` as in `BiRealBlock`.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, gradient: SignGradient, shortcut: ShortcutKind = "conv"
    ) -> None:
        super().__init__()
        self.sign1 = rsign(inputs, gradient)
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = rprelu(outputs)
        self.sign2 = rsign(outputs, gradient)
        self.conv2 = _conv3x3(outputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = rprelu(outputs)
        self.downsample = build_shortcut(shortcut, inputs, outputs, stride, gradient)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(self.sign1(x))) + self.downsample(x))
        return self.act2(self.bn2(self.conv2(self.sign2(x))) + x)


class PlainBlock(nn.Module):
    """Sign -> conv1 -> BN -> Sign -> conv2 -> BN -> + shortcut: ResNet's basic block with binary activations.

    [N, inputs, H, W] -> [N, outputs, H / stride, W / stride]. With the shortcut `sign_conv` every conv between first
    and last layer reads signs, as in STQ-Nets' ResNet-18, whose table 2 gives them all 64x (paper). No ReLU behind the
    sum: with sign(0) = +1 the next block would read nothing but +1.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, gradient: SignGradient, shortcut: ShortcutKind = "sign_conv"
    ) -> None:
        super().__init__()
        self.sign1 = Sign(gradient)
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.sign2 = Sign(gradient)
        self.conv2 = _conv3x3(outputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = build_shortcut(shortcut, inputs, outputs, stride, gradient)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(self.sign1(x)))
        return self.bn2(self.conv2(self.sign2(y))) + self.downsample(x)


class PreactBlock(nn.Module):
    """BN -> Sign -> conv1 -> ReLU -> BN -> Sign -> conv2 -> + shortcut -> ReLU (block of STQ's authors: lab code).

    [N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)]. The changing shortcut is
    BN -> Sign -> conv1x1 and counts among the binary convs.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, gradient: SignGradient) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.sign1 = Sign(gradient)
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.relu1 = nn.ReLU(inplace=True)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.sign2 = Sign(gradient)
        self.conv2 = _conv3x3(outputs, outputs, 1)
        self.relu2 = nn.ReLU(inplace=True)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.BatchNorm2d(inputs), Sign(gradient), nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.conv1(self.sign1(self.bn1(x))))
        y = self.conv2(self.sign2(self.bn2(y)))
        return self.relu2(y + self.downsample(x))


def build_block(
    block: str, inputs: int, outputs: int, stride: int, gradient: SignGradient, shortcut: ShortcutKind
) -> nn.Module:
    """One residual block of the kind named in `BLOCKS`; `preact` has its own shortcut and ignores the argument.

    resnet_e is Bi-Real's structure under another name: ResNet-E doubles the blocks so that every binary conv has its
    shortcut (paper). Here the two differ in their default Sign gradient, approx against hardtanh (our choice).
    """
    if block == "preact":
        return PreactBlock(inputs, outputs, stride, gradient)
    kinds = {"plain": PlainBlock, "react": ReactBlock}
    return kinds.get(block, BiRealBlock)(inputs, outputs, stride, gradient, shortcut)


def _conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
