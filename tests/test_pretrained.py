"""Float weights as people have them: whatever they lie under and are called, or one line that says what is wrong."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsign.compressors.parts.fixed_levels import FixedLevels
from sparsign.compressors.parts.transforms import Mask, attach, find
from sparsign.models.cutting import cut, cuts
from sparsign.models.pretrained import load_pretrained, weights_file


def net(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(outputs)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, outputs))


def state() -> dict:
    found = {k: torch.rand_like(v, dtype=torch.float32) for k, v in net().state_dict().items() if v.dim()}
    return {**found, "1.num_batches_tracked": torch.tensor(7)}


def loads(path, content, expected: dict, **tolerance) -> None:
    torch.save(content, path)
    mine = net()
    load_pretrained(mine, path)
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(value, expected[name], **tolerance)


@pytest.mark.parametrize(
    "under", [(), ("model",), ("net",), ("state_dict",), ("model_state_dict",), ("model", "state_dict")]
)
@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "net.", "_orig_mod.", "_orig_mod.module.", "module.model."]
)
def test_nested_and_prefixed_state_dicts_load(under, prefix, tmp_path):
    content = {f"{prefix}{k}": v for k, v in state().items()}
    expected = {k.removeprefix(prefix): v for k, v in content.items()}
    for name in reversed(under):
        content = {name: content, "epoch": 3}
    loads(tmp_path / "a.pt", content, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_load(dtype, tmp_path):
    content = {k: v.to(dtype) if v.dim() else v for k, v in state().items()}
    loads(tmp_path / "a.pt", content, {k: v.float() if v.dim() else v for k, v in content.items()})


def refusal(path, content) -> str:
    if content is not None:
        torch.save(content, path)
    mine = net()
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        load_pretrained(mine, path)
    assert all(torch.equal(v, before[k]) for k, v in mine.state_dict().items())
    assert str(caught.value).startswith(f"model.pretrained={path}: ") and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("0.weight", torch.full((4, 1, 3, 3), float("nan")), "0.weight holds NaN or infinite numbers"),
        ("3.bias", torch.tensor([1.0, float("inf"), 0]), "3.bias holds NaN or infinite numbers"),
        ("3.bias", torch.tensor([1e300, 0, 0], dtype=torch.float64), "3.bias holds NaN or infinite numbers"),
        (
            "0.weight",
            torch.zeros(4, 1, 3, 3, dtype=torch.complex64),
            "0.weight holds complex64 numbers",
        ),
        ("0.weight", torch.ones(4, 1, 3, 3, dtype=torch.int8), "0.weight holds int8 numbers, expected float32"),
        ("1.num_batches_tracked", torch.tensor(1.5), "1.num_batches_tracked holds float32 numbers, expected int64"),
        ("1.running_var", torch.tensor([1.0, -1, 1, 1]), "1.running_var holds negative variances"),
        ("3.weight", torch.zeros(5, 16), "its head 3.weight is [5, 16], expected [3, 16]: another number of classes"),
        ("0.weight", torch.zeros(4, 1, 5, 5), "of another shape 1 (0.weight is [4, 1, 5, 5], expected [4, 1, 3, 3])"),
        ("extra", torch.zeros(1), "unknown 1 (extra)"),
    ],
)
def test_what_cannot_be_taken_is_named(name, value, said, tmp_path):
    assert said in refusal(tmp_path / "a.pt", {**state(), name: value})


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(3), "text"])
def test_no_state_dict_is_refused(content, tmp_path):
    assert "holds no state dict" in refusal(tmp_path / "a.pt", content)


class Runs:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "weights_only" not in refusal(tmp_path / "a.pt", {"state_dict": state(), "other": Runs()})
    assert not (tmp_path / "executed").exists()


def test_a_packed_file_is_called_one(tmp_path):
    packed = Path(__file__).parent.parent / "zoo" / "lenet5_smallest.sparsign"
    (tmp_path / "a.pt").write_bytes(packed.read_bytes())
    assert "a packed file; expected a run folder, or weights" in refusal(tmp_path / "a.pt", None)


def test_damage_is_seen_by_checksums_and_by_the_digest_in_a_released_files_name(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(state() | {"3.bias": torch.tensor([0.25, 0.5, 0.75])}, path)
    whole = bytearray(path.read_bytes())
    place = whole.find(torch.tensor([0.25, 0.5, 0.75]).numpy().tobytes())
    whole[place] ^= 1
    path.write_bytes(whole)
    assert "damaged: the checksum of " in refusal(path, None)
    torch.save(state(), tmp_path / "net-0123abcd.th")
    assert "damaged: its SHA-256 does not start with 0123abcd" in refusal(tmp_path / "net-0123abcd.th", None)
    torch.save(state(), tmp_path / "net-20250101.th")  # a date
    load_pretrained(net(), tmp_path / "net-20250101.th")


def test_a_run_folder_means_the_end_of_its_pretrain_stage(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"schedule\.teacher=.*: expected a run folder with checkpoints/"):
        weights_file(tmp_path, "schedule.teacher")
    path = tmp_path / "checkpoints" / "pretrain.ckpt"
    path.parent.mkdir()
    wrapped = {k.replace("0.weight", "0.parametrizations.weight.original"): v for k, v in state().items()}
    masks = {"0.parametrizations.weight.0.mask": torch.ones(4, 1, 1, 1), "0.parametrizations.weight.0._extra_state": {}}
    torch.save({"stage": "pretrain", "model": wrapped | masks, "test_top1": 0.5}, path)
    mine = net()
    load_pretrained(mine, tmp_path)
    assert torch.equal(mine[0].weight, wrapped["0.parametrizations.weight.original"])


def test_a_pruned_stages_masks_are_multiplied_in_and_its_network_is_cut_alike(tmp_path):
    torch.manual_seed(0)
    pruned = net()
    attach(pruned[0], Mask((4, 1, 1, 1)), FixedLevels(pruned[0].weight.shape))
    find(pruned[0], Mask).mask[2] = 0
    path = tmp_path / "prune.ckpt"
    torch.save({"stage": "prune", "model": pruned.state_dict(), "test_top1": 0.5}, path)
    mine = net()
    load_pretrained(mine, path)
    assert torch.equal(mine[0].weight, pruned[0].weight) and not mine[0].weight[2].any()
    kept, all_ = torch.tensor([0, 1, 3]), torch.arange
    left = {"0": (kept, all_(1)), "1": (kept, kept), "3": (all_(3), all_(16).view(4, 4)[kept].flatten())}
    small = net()
    cut(small, left)
    torch.save({"stage": "prune", "model": small.state_dict(), "cut": left, "test_top1": 0.5}, path)
    mine = net()
    load_pretrained(mine, path)
    assert torch.equal(mine[3].weight, small[3].weight) and mine[3].weight.shape == (3, 12)
    assert cuts(mine).keys() == left.keys() and torch.equal(mine[0].weight, net()[0].weight[kept])
    for damaged in ({"0": 5}, {"0": (kept.float(), kept)}, [1], {"0": (kept, kept, kept)}):
        torch.save({"stage": "prune", "model": small.state_dict(), "cut": damaged, "test_top1": 0.5}, path)
        assert "its entry cut: expected kept rows and columns" in refusal(path, None)
    other = pruned.state_dict() | {"0.parametrizations.weight.0.mask": torch.ones(5, 1, 1, 1)}
    torch.save({"stage": "prune", "model": other, "test_top1": 0.5}, path)
    assert "a mask [5, 1, 1, 1] beside 0.parametrizations.weight.original [4, 1, 3, 3]" in refusal(path, None)
    find(pruned[0], FixedLevels).active = True
    torch.save({"stage": "quantize", "model": pruned.state_dict(), "test_top1": 0.5}, path)
    assert "stage quantize: 0.parametrizations.weight goes through more than masks" in refusal(path, None)


def test_safetensors_load_where_the_package_is(tmp_path):
    pytest.importorskip("safetensors")
    from safetensors.torch import save_file

    expected = state()
    save_file(expected, tmp_path / "a.safetensors")
    mine = net()
    load_pretrained(mine, tmp_path / "a.safetensors")
    assert all(torch.equal(v, expected[k]) for k, v in mine.state_dict().items())
