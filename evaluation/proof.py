"""Reload is proved, not hoped: what a trained network answered is kept in its packed file and compared after reading.

An engine that sums in another order than torch may move a logit by its last bits, and so a prediction whose two largest
logits are nearly equal. The proof states its epsilon: it names the few images whose margin is below it and holds a
digest of the predictions of all others, which any engine has to meet. A second digest, of the logits' bits, says
whether an engine gives the very same numbers.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-4
"""Of the largest logit: margins below this count as close."""
MOST_CLOSE = 100
"""Images at most that a proof leaves out; a network with more close calls (hardly trained) gets a smaller epsilon."""
DIGEST = 16
"""Bytes of SHA-256 that are kept."""
FIRST, KEPT = 16, 4
"""Predictions of the first images, and logits of the very first, that are kept in full."""


def digest(data: Tensor) -> str:
    """The first 16 bytes of SHA-256, in hex: of predictions as little-endian uint16, of logits as fp32."""
    kind = "<f4" if data.is_floating_point() else "<u2"
    return hashlib.sha256(data.cpu().numpy().astype(kind).tobytes()).hexdigest()[: 2 * DIGEST]


def margins(logits: Tensor) -> Tensor:
    """fp32 [N]: the largest logit less the second largest."""
    best = logits.float().topk(min(2, logits.shape[1]), dim=1).values
    return best[:, 0] - best[:, -1] if best.shape[1] > 1 else torch.full((len(logits),), torch.inf)


def make(logits: Tensor) -> dict[str, Any]:
    """The proof of a trained network from its logits [N, classes] on all test images, in order.

    Returns:
        images: N; epsilon; close: images whose margin is below epsilon; predictions: digest of all others'
        predictions; first: predictions of the first images; bits: digest of the logits; logits: the first image's
        first few, in digits that give back the same fp32.

    Raises:
        ValueError: logits that are not finite: training diverged.
    """
    logits = logits.float().cpu()
    if not logits.isfinite().all():
        raise ValueError(
            "the trained network's logits are not finite: training diverged; expected a smaller lr to help"
        )
    margin = margins(logits)
    epsilon = EPSILON * logits.abs().max().item()
    if (margin < epsilon).sum() > MOST_CLOSE:
        epsilon = margin.sort().values[MOST_CLOSE].item() / 1.1
    epsilon = float(f"{epsilon:.1e}")
    close, predictions = margin < epsilon, logits.argmax(1)
    return {
        "images": len(logits),
        "epsilon": epsilon,
        "close": close.nonzero().flatten().tolist(),
        "predictions": digest(predictions[~close]),
        "first": predictions[:FIRST].tolist(),
        "bits": digest(logits),
        "logits": [float(str(value)) for value in logits[0, :KEPT].numpy()],
    }


def check(proof: dict[str, Any], logits: Tensor) -> dict[str, Any]:
    """Compares a reloaded network's logits [N, classes] on the test images, in order, with the trained network's.

    Returns:
        identical_predictions: every compared prediction is the same, of images whose margin was not below `epsilon`:
            of all test images, or of the first ones when fewer (or more) images than the proof's were run;
            compared_images: how many; epsilon; bit_equal: all logits are the same numbers (None where not all images
            were run); max_logit_error: largest absolute difference over the kept logits.

    Raises:
        ValueError: a malformed proof, or other classes than the network has.
    """
    logits = logits.float().cpu()
    try:
        kept = torch.tensor([float(value) for value in proof["logits"]])
        first = torch.tensor([int(value) for value in proof["first"]])
        count, epsilon, whole, bits = (proof[key] for key in ("images", "epsilon", "predictions", "bits"))
        close = torch.zeros(len(logits), dtype=torch.bool)
        close[[int(index) for index in proof["close"] if int(index) < len(logits)]] = True
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise ValueError(f"the packed file's proof is malformed ({' '.join(str(error).split()):.100})") from None
    if not 1 <= len(kept) <= logits.shape[1] or not len(first) or int(first.max()) >= logits.shape[1]:
        raise ValueError(f"the packed file's proof is malformed: not of a network with {logits.shape[1]} classes")
    all_images = len(logits) == count
    if all_images:
        compared = ~close
        same = digest(logits.argmax(1)[compared]) == whole
    else:
        compared = ~close[: min(len(first), len(logits))]
        same = torch.equal(logits[: len(compared)].argmax(1)[compared], first[: len(compared)][compared])
    return {
        "identical_predictions": same,
        "compared_images": int(compared.sum()),
        "epsilon": float(epsilon),
        "bit_equal": digest(logits) == bits if all_images else None,
        "max_logit_error": (logits[0, : len(kept)] - kept).abs().max().item(),
    }
