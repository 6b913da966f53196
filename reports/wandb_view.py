"""A saved view of a W&B project: the panels this field compares, runs grouped by sweep.

Names of metrics are those of `pipeline.tracking_wandb`: `<stage>/<metric>` for every epoch and at a stage's end,
`final/...`, and the report's numbers in the summary.
"""

from __future__ import annotations

from typing import Any

from sparsign.configs.options import STAGE_KINDS

NAME = "sparsign: accuracy, bytes, speed"


def view(project: str, entity: str) -> Any:
    """The `wandb_workspaces` Workspace, not saved yet: nothing here needs a network."""
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces import expr

    sections = [
        ws.Section("What it costs and saves", panels=costs(), is_open=True, layout_settings=_columns(ws, 2, 2)),
        ws.Section("Stages", panels=curves(), is_open=True, layout_settings=_columns(ws, 3, 2)),
        ws.Section("Layers and gammas", panels=insides(), is_open=True, layout_settings=_columns(ws, 2, 2)),
    ]
    runs = ws.RunsetSettings(
        groupby=[expr.Metric("Group")],
        pinned_columns=[f"summary:{name}" for name in ("accuracy/top1", "size/packed_bytes", "latency/milliseconds")],
    )
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=sections, runset_settings=runs)


def _columns(ws: Any, columns: int, rows: int) -> Any:
    return ws.SectionLayoutSettings(columns=columns, rows=rows)


def costs() -> list[Any]:
    """Top-1 against bytes on disk, against measured latency, and against the pruned ratio with seeds' spread."""
    import wandb_workspaces.reports.v2 as wr

    top1 = wr.SummaryMetric("accuracy/top1")
    return [
        wr.ScatterPlot("Top-1 against bytes on disk", x=wr.SummaryMetric("size/packed_bytes"), y=top1, log_x=True),
        wr.ScatterPlot(
            "Top-1 against measured milliseconds", x=wr.SummaryMetric("latency/milliseconds"), y=top1, log_x=True
        ),
        wr.LinePlot(
            "Top-1 against the pruned ratio, smallest to largest of the seeds",
            x="final/pfr", y=["final/top1"], title_x="pruned ratio", title_y="top-1", **_spread(),
        ),
        wr.LinePlot(
            "Pruned ratio while training, smallest to largest of the seeds",
            metric_regex=_of_stages("pfr"), title_x="epochs and ends of stages", title_y="pruned ratio", **_spread(),
        ),
    ]  # fmt: skip


def curves() -> list[Any]:
    """Loss and accuracies of every epoch, all stages of a run one after the other."""
    import wandb_workspaces.reports.v2 as wr

    shown = {"train_loss": "loss", "train_top1": "top-1 on training images", "val_top1": "top-1 on held-out images"}
    shown |= {"test_top1": "top-1 on test images, at the end of each stage", "lr": "learning rate"}
    return [
        wr.LinePlot(text, metric_regex=_of_stages(name), title_x="epochs and ends of stages", **_spread())
        for name, text in shown.items()
    ]


def insides() -> list[Any]:
    """Kept channels by layer, from the table that a finished run logs; histograms of BN's gammas by stage."""
    import wandb_workspaces.reports.v2 as wr

    kept = wr.CustomChart(
        query={"summaryTable": {"tableKey": "layers"}},
        chart_name="wandb/bar/v0",
        chart_fields={"label": "layer", "value": "filters kept, %"},
        chart_strings={"title": "Filters kept by layer, %"},
    )
    gammas = [
        wr.LinePlot(f"log10 |gamma|, {stage}", y=[f"{stage}/gamma_log10_hist"], title_x="epochs and ends of stages")
        for stage in ("pretrain", "finetune")
    ]
    return [kept, wr.WeavePanelSummaryTable(table_name="layers"), *gammas]


def _of_stages(metric: str) -> str:
    """Regular expression of the metric in every stage and round: `prune-2/pfr`."""
    return f"^({'|'.join(STAGE_KINDS)})(-[0-9]+)?/{metric}$"


def _spread() -> dict[str, Any]:
    """One line per sweep: the mean of its runs, in a band from the smallest to the largest."""
    return {"groupby": "Group", "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
