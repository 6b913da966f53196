"""Reload is proved, not hoped: what a trained network answered is kept in its packed file and compared after reading.

The proof holds the logits of the first few test images and a digest of the predictions of all of them.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

FEW_CLASSES = 100


def digest(predictions: Tensor) -> str:
    """SHA-256, in hex, of the predicted classes [N] as little-endian uint16."""
    return hashlib.sha256(predictions.cpu().numpy().astype("<u2").tobytes()).hexdigest()


def make(logits: Tensor) -> dict[str, Any]:
    """The proof of a trained network from its logits [N, classes] on all test images, in order.

    Logits of 8 images are kept (1 above 100 classes, to keep the file small), in digits that give back the same fp32.

    Raises:
        ValueError: logits that are not finite: training diverged.
    """
    if not logits.isfinite().all():
        raise ValueError(
            "the trained network's logits are not finite: training diverged; expected a smaller lr to help"
        )
    kept = logits[: 8 if logits.shape[1] <= FEW_CLASSES else 1].float().cpu().numpy()
    return {
        "images": len(kept),
        "logits": [[float(str(value)) for value in row] for row in kept],
        "predictions_sha256": digest(logits.argmax(1)),
        "test_images": len(logits),
    }


def check(proof: dict[str, Any], logits: Tensor) -> dict[str, Any]:
    """Compares a reloaded network's logits [N, classes] on the test images, in order, with the trained network's.

    Returns:
        identical_predictions: every compared prediction is the same: all test images, or only those with kept logits
            when fewer (or more) images than the proof's were run; compared_images: how many; max_logit_error: largest
            absolute difference over the kept logits.

    Raises:
        ValueError: a malformed proof, or other classes than the network has.
    """
    try:
        expected = torch.from_numpy(np.asarray(proof["logits"], np.float32))
        whole, count = proof["predictions_sha256"], int(proof["test_images"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the packed file's proof is malformed ({error})") from None
    if expected.dim() != 2 or not len(expected) or expected.shape[1] != logits.shape[1]:
        shape = list(expected.shape)
        raise ValueError(f"the packed file's proof has logits of shape {shape}, expected [n, {logits.shape[1]}]")
    expected = expected[: len(logits)]
    mine = logits[: len(expected)].float().cpu()
    same = torch.equal(mine.argmax(1), expected.argmax(1))
    if len(logits) == count:
        same = same and digest(logits.argmax(1)) == whole
    return {
        "identical_predictions": same,
        "compared_images": count if len(logits) == count else len(expected),
        "max_logit_error": (mine - expected).abs().max().item(),
    }
