"""Residual blocks whose 3x3 convs read binary activations. Weights stay ordinary: a compressor binarises them."""

from torch import Tensor, nn

from sparsign.models.sign import Sign, SignGradient

BLOCKS = ("bireal", "resnet_e", "preact")


class BiRealBlock(nn.Module):
    """Two one-conv units, each x -> Sign -> conv3x3 -> BN -> + shortcut, without ReLU (Bi-Real Net: paper).

    [N, inputs, H, W] -> [N, outputs, H / stride, W / stride]. Where the size changes the first shortcut is
    AvgPool2d(stride) -> conv1x1 -> BN in full precision.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, gradient: SignGradient) -> None:
        super().__init__()
        self.sign1 = Sign(gradient)
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.sign2 = Sign(gradient)
        self.conv2 = _conv3x3(outputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(stride) if stride != 1 else nn.Identity(),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(self.sign1(x))) + self.downsample(x)
        return self.bn2(self.conv2(self.sign2(x))) + x


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


def build_block(block: str, inputs: int, outputs: int, stride: int, gradient: SignGradient) -> nn.Module:
    """One residual block of the kind named in `BLOCKS`.

    resnet_e is Bi-Real's structure under another name: ResNet-E doubles the blocks so that every binary conv has its
    shortcut (paper). Here the two differ in their default Sign gradient, approx against hardtanh (our choice).
    """
    return (PreactBlock if block == "preact" else BiRealBlock)(inputs, outputs, stride, gradient)


def _conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
