"""Milliseconds of a binary ResNet-18 in Larq Compute Engine, in a Python of its own: it wants an old TensorFlow.

    python3.11 -m venv lce && lce/bin/pip install larq-compute-engine==0.16.0 tensorflow-cpu==2.15.1 larq==0.13.3
    lce/bin/python benchmarks/lce.py [size=32] [channels=1] [classes=10] [seconds=20]

The network has the shapes of an uncut ResNet-18 with Bi-Real's blocks: every 3x3 conv but the stem is binary, with a
shortcut around each; where the size changes the shortcut averages and a float 1x1 widens it. Random weights. Batch 1,
one thread, CPU time, 20th percentile; by the default kernel and by indirect BGEMM.
"""

from __future__ import annotations

import sys
import time
from typing import Any

try:
    import larq
    import larq_compute_engine as lce
    import numpy as np
    import tensorflow as tf
    from larq_compute_engine.tflite.python.interpreter import Interpreter
except ImportError as missing:
    sys.exit(f"{__doc__.strip()}\n\n{missing}")

OPTIONS = {"size": 32, "channels": 1, "classes": 10, "seconds": 20}
layers = tf.keras.layers


def network(size: int, channels: int, classes: int) -> tf.keras.Model:
    """images [size, size, channels] -> logits [classes]."""
    images = tf.keras.Input((size, size, channels))
    x = layers.BatchNormalization()(layers.Conv2D(64, 3, padding="same", use_bias=False)(images))
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for place in range(4):
            x = unit(x, width, stride if place == 0 else 1)
    return tf.keras.Model(images, layers.Dense(classes)(layers.GlobalAvgPool2D()(x)))


def unit(x: Any, width: int, stride: int) -> Any:
    """sign, binary conv, BN, shortcut."""
    quantised = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign", "kernel_constraint": "weight_clip"}
    y = larq.layers.QuantConv2D(width, 3, stride, "same", pad_values=1, use_bias=False, **quantised)(x)
    if stride > 1:
        x = layers.AvgPool2D(stride)(x)
        x = layers.BatchNormalization()(layers.Conv2D(width, 1, use_bias=False)(x))
    return layers.add([layers.BatchNormalization()(y), x])


def milliseconds(file: bytes, images: np.ndarray, seconds: float, indirect: bool) -> tuple[float, float, int]:
    """(20th percentile, median, samples) of a call."""
    run, times = Interpreter(file, num_threads=1, use_indirect_bgemm=indirect), []
    run.predict(images)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.process_time()
        run.predict(images)
        times.append(1e3 * (time.process_time() - start))
    return float(np.percentile(times, 20)), float(np.median(times)), len(times)


def main() -> None:
    """Makes the network, prints a line per kernel."""
    chosen = OPTIONS | {k: int(v) for k, _, v in (argument.partition("=") for argument in sys.argv[1:])}
    if len(chosen) > len(OPTIONS):
        sys.exit(f"expected {', '.join(OPTIONS)}")
    file = lce.convert_keras_model(network(chosen["size"], chosen["channels"], chosen["classes"]))
    images = np.zeros((1, chosen["size"], chosen["size"], chosen["channels"]), np.float32)
    for indirect in (False, True):
        p20, middle, samples = milliseconds(file, images, chosen["seconds"] / 2, indirect)
        name = "LCE indirect" if indirect else "LCE"
        print(f"{name:14} p20 {p20:.3f} ms, median {middle:.3f} ms,  samples {samples}", flush=True)


if __name__ == "__main__":
    main()
