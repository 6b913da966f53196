"""Several processes, one per device, started by torchrun: who is who, and what they tell each other.

Only rank 0 writes. A single process is rank 0 of one, and every function here is then free of effect.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

LONGEST_WAIT = timedelta(days=1)  # rank 0 tests, packs and downloads alone


def size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """True in the one process that writes."""
    return int(os.environ.get("RANK", 0)) == 0


def start(devices: int, device: torch.device) -> None:
    """Meets the other processes, one on each of `devices`; Lightning goes on in the group that is there.

    Raises:
        ValueError: there are not as many processes as devices.
    """
    if devices != size():
        raise ValueError(
            f"trainer.devices={devices}: expected one process for each, not {size()}; "
            f"start them by: torchrun --nproc_per_node={devices} train.py ..."
        )
    if size() > 1:
        gpu = device if device.type == "cuda" else None
        if gpu:
            torch.cuda.set_device(gpu)
        distributed.init_process_group("nccl" if gpu else "gloo", timeout=LONGEST_WAIT, device_id=gpu)


def stop() -> None:
    """Parts from the other processes."""
    if size() > 1:
        distributed.destroy_process_group()


def barrier() -> None:
    """Waits until all processes are here."""
    if size() > 1:
        distributed.barrier()


def from_main(value: Any) -> Any:
    """Rank 0's value, in all processes."""
    if size() > 1:
        box = [value]
        distributed.broadcast_object_list(box)
        return box[0]
    return value


def total(values: Tensor) -> Tensor:
    """The sum over all processes."""
    if size() > 1:
        values = values.clone()
        distributed.all_reduce(values)
    return values
