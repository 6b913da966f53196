"""Checks every model builder shares: form, image size and its own options, each refused in one clear line."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import nn

FORMS = ("float", "wbin", "fbin")


def check_form(model: str, form: str, supported: tuple[str, ...] = FORMS, reason: str = "") -> None:
    """Raise ValueError unless `form` is one the model can take; `reason` says why the others are not."""
    if form not in supported:
        why = f" ({reason})" if reason and form in FORMS else ""
        raise ValueError(f"model.form={form} is not possible for {model}{why}; expected {', '.join(supported)}")


def check_image_size(model: str, image_size: int, minimum: int, multiple: int = 1) -> None:
    """Raise ValueError for images the network would shrink to nothing, or whose branches would not match in size."""
    if image_size < minimum or image_size % multiple:
        rule = f"at least {minimum}" + (f" and a multiple of {multiple}" if multiple > 1 else "")
        raise ValueError(f"dataset.image_size={image_size} does not suit {model}; expected {rule} pixels")


@torch.no_grad()
def check_takes(net: nn.Module, channels: int, side: int, option: str) -> None:
    """Raise ValueError naming `option` unless the network, whatever it was built for, takes images of that side too."""
    training = net.training
    try:
        net.eval()(torch.zeros(1, channels, side, side, device=next(net.parameters()).device))
    except RuntimeError:  # torch's word for shapes that do not fit
        raise ValueError(f"{option}={side} does not suit this network: it takes images of one size only") from None
    finally:
        net.train(training)


@torch.no_grad()
def check_bf16_gradients(net: nn.Module, channels: int, sides: Iterable[int]) -> None:
    """Raise ValueError for a convolution whose stride is larger than the map that it reads.

    torch 2.14 takes the bf16 gradient of such a weight on CPUs from memory that nobody has written.
    """
    hooks, training, device = [], net.training, next(net.parameters()).device
    for name, conv in net.named_modules():
        if isinstance(conv, nn.Conv2d) and max(conv.stride) > 1:
            hooks.append(conv.register_forward_pre_hook(partial(_refuse_large_stride, name)))
    try:
        for side in sides:
            net.eval()(torch.zeros(1, channels, side, side, device=device))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()


def _refuse_large_stride(name: str, conv: nn.Conv2d, inputs: tuple[torch.Tensor, ...]) -> None:
    height, width = inputs[0].shape[2:]
    if conv.stride[0] > height or conv.stride[1] > width:
        raise ValueError(
            f"trainer.precision=bf16: {name} strides {conv.stride} over a map of {height}x{width}, and torch on CPUs "
            "gets the bf16 gradient of that wrong; expected trainer.precision=fp32"
        )


def choose(model: str, options: Mapping[str, Any], choices: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The options with defaults filled in: `choices` maps each known name to its values, the default first.

    Raises ValueError for an unknown name (with the near match) or a value that is not among the choices.
    """
    for name, value in options.items():
        if name not in choices:
            near = get_close_matches(name, choices, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(choices) or 'none'}"
            raise ValueError(f"model.options.{name} is not an option of {model}; {hint}")
        if value not in choices[name]:
            expected = ", ".join(str(choice) for choice in choices[name])
            raise ValueError(f"model.options.{name}={value} is not possible for {model}; expected {expected}")
    return {name: options.get(name, values[0]) for name, values in choices.items()}
