"""One thread per test process: the tests run in parallel, and tiny networks are slower on several threads."""

import os
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hydra import compose, initialize_config_dir

from sparsign.compressors import registry
from sparsign.compressors.subsidiary import Subsidiary
from sparsign.configs import schema
from sparsign.pipeline.naming import register_resolvers
from tests.thin import narrow

torch.set_num_threads(1)
os.fsync = lambda _: None  # no test is about a power cut; waiting for the disk took a third of the time
schema.register()
registry.register()
register_resolvers()

TINY_DATA = [
    "dataset._target_=tests.tiny.TinyImages", "dataset.channels=3", "dataset.mean=[0.5,0.5,0.5]",
    "dataset.std=[0.5,0.5,0.5]", "dataset.num_classes=10", "dataset.batch_size=16", "dataset.val_fraction=0",
    "dataset.augment=false", "dataset.limit=null", "schedule.max_batches=1", "trainer.precision=fp32",
    "latency.seconds=0", "trainer.progress=false",
]  # fmt: skip


@pytest.fixture
def plain_page(monkeypatch):
    """Leaves the pictures of report.html and gzip's and xz's sizes out: tested on their own, seconds of every run."""
    monkeypatch.setattr("sparsign.reports.files.render", lambda *_: "")
    none = dict.fromkeys(("packed", "gzip", "xz"), 0)
    monkeypatch.setattr("sparsign.evaluation.report.compressed_code_bytes", lambda _: none)


@pytest.fixture
def two_layers(monkeypatch):
    """Subsidiary goes through its first two layers only: the others have stages that do the same again."""
    stages = Subsidiary.stages
    monkeypatch.setattr(Subsidiary, "stages", lambda self, model: stages(self, model)[:5])


@pytest.fixture
def thin(monkeypatch):
    """thin(model): that network, if it is a big one, is built an eighth as wide in this test."""
    return partial(narrow, monkeypatch)


@pytest.fixture
def configuration():
    """Composes the training config from overrides, as the command line does."""

    def composed(*overrides: str):
        folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "configs")
        with initialize_config_dir(folder, version_base="1.3"):
            return compose("train", overrides=list(overrides))

    return composed
