"""A pretrain stage that several runs have in common is trained once: the first leaves it in a cache for the others.

What is taken is what the run would have trained itself, to the bit: an entry is found by everything that decides its
bits (`contents`), and by nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from sparsign.kernels.engine import native
from sparsign.packing.atomic import taking_its_place, write_atomic
from sparsign.pipeline import build, origin, ranks
from sparsign.pipeline.folder import VOLATILE, RunFolder, load_plain
from sparsign.pipeline.lock import exclusive
from sparsign.pipeline.plan import StagePlan
from sparsign.pipeline.trained import Trained


class Entry:
    """One pretrain stage in a cache: `<key>.ckpt`, its boundary checkpoint, and `<key>.json`, which tells of it.

    The second is written last: it holds what the key was made of (`of`), the run that trained the stage, its metrics
    rows and its seconds.
    """

    def __init__(self, cache: Path, contents: dict[str, Any]) -> None:
        text = json.dumps(contents, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:32]
        self.contents = json.loads(text)
        self.checkpoint, self.about, self.lock = (cache / f"{self.key}.{end}" for end in ("ckpt", "json", "lock"))

    @property
    def there(self) -> bool:
        return self.about.is_file() and self.checkpoint.is_file()

    def keep(self, folder: RunFolder, stage: str) -> None:
        """Puts the stage that the folder has just finished into the cache."""
        rows = [row for row in folder.read_metrics() if row["stage"] == stage]
        _link(folder.boundary(stage), self.checkpoint)
        about = {"run": str(folder.path.resolve()), "of": self.contents, "rows": rows}
        write_atomic(self.about, json.dumps(about | {"seconds": folder.seconds().get(stage, 0.0)}, indent=1) + "\n")

    def take(self, folder: RunFolder, stage: str) -> list[dict[str, Any]]:
        """Gives the folder what it would hold had it trained the stage, and `pretrain_from.json`, which says
        that it has not. Returns the stage's rows.

        Raises:
            ValueError: a damaged entry, in one line.
        """
        try:
            about = json.loads(self.about.read_text(encoding="utf-8"))
            run, rows, seconds = str(about["run"]), list(about["rows"]), float(about["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.about}: not a shared pretrain stage ({error}); delete it to train again") from None
        load_plain(self.checkpoint, "model")  # before the folder is given a damaged one
        folder.drop_metrics([], None, 0)
        for row in rows:
            folder.append_metrics(row)
        folder.add_seconds(stage, seconds)
        told = {"cache": str(self.checkpoint.resolve()), "run": run, "seconds": seconds}
        write_atomic(folder.pretrain_from, json.dumps(told, indent=1) + "\n")
        _link(self.checkpoint, folder.boundary(stage))
        folder.mid_stage.unlink(missing_ok=True)
        return rows


@contextmanager
def entry(run: Trained, plan: StagePlan, console: Console) -> Iterator[Entry | None]:
    """The stage's entry in the run's cache, which is no other process's meanwhile; None where there is none to share.

    Only rank 0 holds the lock. Whoever comes second waits until the first has trained the stage.
    """
    first = plan is run.plan[0] and plan.stage.kind == "pretrain" and plan.recipe.epochs > 0
    if run.cache is None or not first:
        yield None
        return
    found = Entry(run.cache, contents(run, plan))
    if not ranks.is_main():
        yield found
        return
    with exclusive(found.lock, "the shared pretrain stage", wait=lambda line: console.print(line, soft_wrap=True)):
        yield found


def contents(run: Trained, plan: StagePlan) -> dict[str, Any]:
    """Everything that decides what the pretrain stage will leave. Call it before the stage has started."""
    config = build.plain(run.config)
    device = next(run.model.parameters()).device
    later = {*run.compressor.AFTER_PRETRAIN, "_target_", "name"}
    return {
        "stage": plan.told,
        "compressor": {k: v for k, v in config["compressor"].items() if k not in later},
        "method": type(run.compressor).__name__,
        "model": config["model"],
        "dataset": {k: v for k, v in config["dataset"].items() if f"dataset.{k}" not in VOLATILE},
        "root": str(Path(config["dataset"]["root"]).expanduser().resolve()),
        "images": _digest(run.data.contents()),
        "network": _digest(run.model.state_dict()),
        "seed": config["seed"],
        "trainer": {
            k: config["trainer"][k] for k in ("channels_last", "compile", "deterministic", "devices", "kernels")
        },
        "threads": torch.get_num_threads(),
        "engine": native() is not None,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "code": origin.code_of(run.config) | {"sources": origin.sources()},
    }


def _digest(state: dict[str, Any]) -> str:
    """SHA-256 of named tensors and plain values."""
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _link(source: Path, target: Path) -> None:
    """The same file under a second name where the file system can, else a copy: whole or not there."""
    with taking_its_place(target) as part:
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)
