"""How every network of ours starts."""

from torch import nn


def initialise(model: nn.Module) -> None:
    """Kaiming-normal weights (fan-in) and zero biases for every Conv2d and Linear; BatchNorm keeps torch's 1 and 0.

    Signs of the weights come out balanced, which binary layers need (an all-positive start never recovers).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
