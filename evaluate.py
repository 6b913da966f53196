"""Measure a packed file with nothing but the file and the data: `python evaluate.py --help`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import hydra
import yaml
from omegaconf import DictConfig, OmegaConf

from sparsign.configs.evaluation import register
from sparsign.configs.options import check
from sparsign.configs.screen import screen
from sparsign.evaluation.rebuild import test_batches
from sparsign.evaluation.report import evaluate_packed
from sparsign.evaluation.storage import storage_table
from sparsign.packing.file import read
from sparsign.packing.limits import Limits
from sparsign.pipeline.cli import fails_in_one_line, run_cli
from sparsign.pipeline.phases import phase
from sparsign.reports.files import write_report
from sparsign.reports.table import summary


@hydra.main(version_base="1.3", config_path="configs", config_name="evaluate")
@fails_in_one_line
def main(config: DictConfig) -> float:
    """Writes report.json and report.html; returns the packed network's top-1."""
    check(OmegaConf.to_object(config), "")
    check_repack(config.repack, config.run, config.packed, config.leftovers)
    if config.repack:
        return repacked(config)
    path = packed_file(config.run, config.packed)
    return measured(config, path, path)["accuracy"]["top1"]


def repacked(config: DictConfig) -> float:
    """Packs the run again and measures the new file, which takes the old one's place once it is proved."""
    from sparsign.evaluation.repack import repack
    from sparsign.pipeline.folder import RunFolder

    folder = RunFolder(config.run)
    check_output(output_folder(config, folder.packed))
    with folder.locked():
        new = repack(folder, config.dataset.root, config.leftovers, screen())
        try:
            return measured(config, new, folder.packed)["accuracy"]["top1"]
        finally:
            new.unlink(missing_ok=True)


def check_repack(repack: bool, run: str | None, packed: str | None, leftovers: str | None) -> None:
    """Raises ValueError for options that do not go together, FileNotFoundError for a run that is not there."""
    if not repack and leftovers is not None:
        raise ValueError(f"leftovers={leftovers}: expected repack=true with it; a packed file stays as it is")
    if repack and (run is None or packed is not None):
        raise ValueError(f"repack=true with run={run}, packed={packed}: expected run=<folder> alone")
    if repack and not Path(run).is_dir():
        raise FileNotFoundError(f"run={run}: there is no such folder")


def measured(config: DictConfig, path: Path, place: Path) -> dict[str, Any]:
    """The report of the packed file at `path`, written; the file is moved to `place` before it is, if it is proved."""
    output = output_folder(config, place)
    check_output(output)
    data = config.dataset
    root = data.root if data.root is not None else root_of_run(path.parent)
    packed = read(path, Limits.at_most(**config.limits))
    batches = test_batches(packed, root, data.download, data.workers)
    console = screen()
    with phase(console, "testing and timing"):
        report = evaluate_packed(path, batches, OmegaConf.to_container(config.latency), data.limit, packed)
    report["packed"] = str(place)
    proved = report["reload"]["identical_predictions"] is not False
    if path != place and proved:
        os.replace(path, place)
    if path == place or proved:
        write_report(report, output)
    console.print(summary(report, output))
    sparse = {row["name"]: row["storage"] for row in report["layers"] if row["storage"]}
    if sparse:
        console.print(storage_table(sparse))
    if not proved:
        raise ValueError(f"{path}: its predictions are DIFFERENT from those of the network it was made from")
    return report


def output_folder(config: DictConfig, packed: Path) -> Path:
    """Where the report goes: `output=`, else beside the packed file."""
    return Path(config.output) if config.output is not None else packed.parent


def check_output(output: Path) -> None:
    """Raises ValueError, before the work starts, where no report could be written."""
    if not output.is_dir():
        raise ValueError(f"output={output}: expected an existing folder")
    try:
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(f"output={output}: cannot be written to ({error.strerror}); set output=<folder>") from None


def packed_file(run: str | None, packed: str | None) -> Path:
    """The packed file that `run=` or `packed=` names. Raises ValueError unless exactly one is given."""
    if (run is None) == (packed is None):
        raise ValueError(f"run={run}, packed={packed}: expected exactly one of run=<folder> and packed=<file>")
    path = Path(packed) if run is None else Path(run) / "model.sparsign"
    if not path.is_file():
        raise FileNotFoundError(f"{'packed' if run is None else 'run'}={packed or run}: there is no file {path}")
    return path


def root_of_run(folder: Path) -> str:
    """`dataset.root` of the run folder's config.yaml, or `data` where there is none."""
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return str(config["dataset"]["root"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
        return "data"


def command() -> None:
    """`sparsign-evaluate`: the same as `python evaluate.py`."""
    register()
    run_cli(main, "evaluate")


if __name__ == "__main__":
    command()
