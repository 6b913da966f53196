"""The float network that a binary or ternary one is set beside: `baseline=<run folder>`."""

from __future__ import annotations

from pathlib import Path

from sparsign.evaluation.report import read_report


def float_accuracy(folder: str | Path, model: str, dataset: str) -> float:
    """Top-1 of the float network that a finished run trained, as a fraction.

    Raises:
        FileNotFoundError: no such run, or one that is not finished.
        ValueError: one line: another network or data set, or a run without a float network.
    """
    try:
        report = read_report(Path(folder) / "report.json")
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"baseline={folder}: expected the folder of a finished run ({error})") from None
    for name, asked in (("model", model), ("dataset", dataset)):
        if report[name] != asked:
            raise ValueError(f"baseline={folder}: has {name}={report[name]}, expected {asked} as in this run")
    found = report["accuracy"]["float_top1"]
    if found is None:
        raise ValueError(
            f"baseline={folder}: its form is {report['form']}; expected a run that trained a float network"
        )
    return found
