"""The saved W&B view, as far as it goes without a network: its specification, and what is said where none is saved."""

import json
import re
import sys

import pytest

from sparsign.reports.__main__ import main


def test_the_specification_has_the_panels_and_groups_by_sweep(tmp_path, capsys):
    pytest.importorskip("wandb_workspaces")
    main(["wandb", "--project", "sparsign", "--entity", "us", "--to", str(tmp_path / "view.json")])
    view = json.loads((tmp_path / "view.json").read_text())
    assert (view["project"], view["entity"]) == ("sparsign", "us")
    section = view["spec"]["section"]
    assert section["runSets"][0]["grouping"] == [{"section": "run", "name": "group"}]
    panels = [panel for part in section["panelBankConfig"]["sections"] for panel in part["panels"]]
    configs = [panel["config"] for panel in panels]
    scatters = {(c["xAxis"], c["yAxis"]) for c in (p["config"] for p in panels if p["viewType"] == "Scatter Plot")}
    assert scatters == {
        ("summary:size/packed_bytes", "summary:accuracy/top1"),
        ("summary:latency/milliseconds", "summary:accuracy/top1"),
    }
    spread = [c for c in configs if c.get("groupBy") == "group" and c["groupArea"] == "minmax"]
    assert any((c["xAxis"], c["metrics"]) == ("final/pfr", ["final/top1"]) for c in spread)
    patterns = [c["metricRegex"] for c in spread if "metricRegex" in c]
    for row in ("prune-2/pfr", "pretrain/train_loss", "finetune/val_top1", "quantize/test_top1"):
        assert sum(bool(re.search(pattern, row)) for pattern in patterns) == 1
    assert any(c.get("panelDefId") == "wandb/bar/v0" and "layers" in json.dumps(c["userQuery"]) for c in configs)
    assert {f"{stage}/gamma_log10_hist" for stage in ("pretrain", "finetune")} <= {
        name for c in configs for name in c.get("metrics", [])
    }


def test_without_package_or_login_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SystemExit, match=r"^error: this command needs the package wandb-workspaces: pip install "):
        main(["wandb", "--project", "p"])
    monkeypatch.setitem(sys.modules, "wandb_workspaces", sys)
    with pytest.raises(SystemExit, match=r"^error: not logged in to W&B: expected WANDB_API_KEY="):
        main(["wandb", "--project", "p"])
