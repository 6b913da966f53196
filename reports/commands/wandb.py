"""Save a view of a W&B project with the panels this field compares, runs grouped by sweep."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sparsign.packing.atomic import write_atomic
from sparsign.pipeline.tracking_wandb import logged_in
from sparsign.reports.wandb_view import view


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", required=True, help="as logger.project of the runs")
    parser.add_argument("--entity", help="who owns the project; default: yourself")
    parser.add_argument("--to", type=Path, help="write the specification into this JSON file and save nothing")


def run(options: argparse.Namespace) -> None:
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        raise ValueError('this command needs the package wandb-workspaces: pip install "sparsign[wandb]"') from None
    if options.to is not None:
        spec = view(options.project, options.entity or "")._to_model().model_dump(by_alias=True, exclude_none=True)
        write_atomic(options.to, json.dumps(spec, indent=2, default=str) + "\n")
        print(f"{options.to}: the view of {options.project}, not saved at W&B")
        return
    if not logged_in():
        raise ValueError("not logged in to W&B: expected WANDB_API_KEY=..., or run `wandb login` once")
    import wandb

    try:
        entity = options.entity or wandb.Api().default_entity
        saved = view(options.project, entity).save()
    except Exception as error:  # of many kinds: what the network, the server and the library say
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"W&B did not save the view of {options.project}: {cause}") from error
    print(saved.url)
