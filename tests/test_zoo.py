"""The zoo's files are what its table, the ledger and the files themselves say."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from sparsign.kernels.reference import ReferenceEngine
from sparsign.packing.file import read

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "zoo" / "README.md").read_text(encoding="utf-8").splitlines()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES if ".sparsign |" in line]
LEDGER = {row["run"]: row for row in map(json.loads, (ROOT / "papers" / "ledger.jsonl").read_text().splitlines())}
MOST = 200_000
"""Bytes of a file."""


def test_every_file_has_its_row():
    assert sorted(row[0] for row in ROWS) == sorted(path.name for path in (ROOT / "zoo").glob("*.sparsign")) != []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_file_is_its_row_and_its_ledgers(row):
    name, run, _, _, top1, size, digest = row
    data, ledger = (ROOT / "zoo" / name).read_bytes(), LEDGER[run]
    assert len(data) == int(size) <= MOST
    assert hashlib.sha256(data).hexdigest().startswith(digest) and len(digest) == 16
    packed = read(ROOT / "zoo" / name)
    assert top1 == f"{ledger['top1']:.2f} %" == f"{100 * packed.meta['accuracy']['trained_top1']:.2f} %"
    said = [packed.meta[key]["name"] for key in ("model", "dataset", "compressor")] + [packed.meta["seed"]]
    assert said == [ledger[key] for key in ("model", "dataset", "compressor", "seed")]
    assert ReferenceEngine(packed)(torch.zeros(2, *packed.input_shape)).shape == (2, 10)
