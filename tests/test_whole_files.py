"""Files are whole or not there: what an interrupted write leaves, and checkpoints that are damaged."""

import os
import platform
import signal

import pytest
import torch

from sparsign.packing import atomic
from sparsign.pipeline.folder import RunFolder, load_plain, save_atomic


def test_interrupted_write_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    atomic.write_atomic(path, "old")

    def broken(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", broken)
        for write in (lambda: atomic.write_atomic(path, b"new"), lambda: save_atomic({"a": 1}, path)):
            with pytest.raises(KeyboardInterrupt):
                write()
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    atomic.write_atomic(path, b"new")
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


def test_what_a_killed_writer_leaves_the_next_one_removes_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    pid = os.fork()
    if not pid:
        atomic.write_atomic(tmp_path / "model.sparsign", b"new")
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    (left,) = tmp_path.iterdir()
    assert str(pid) in left.name and left.name.endswith(".part")
    node = platform.node()
    kept = {f".x.{node}-{os.getppid()}.part", f".x.elsewhere-{pid}.part", f"x.{node}-{pid}.part", ".x.part"}
    kept |= {f".x.{node}-{10**30}.part", f".x.{node}-.part"}
    for name in kept:
        (tmp_path / name).touch()
    monkeypatch.undo()
    save_atomic({"a": 1}, tmp_path / "a.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "a.ckpt"}


def test_checkpoints_are_plain_and_damaged_ones_are_named(tmp_path):
    path = tmp_path / "a.ckpt"
    save_atomic({"stage": "prune", "model": {"w": torch.arange(3.0)}}, path)
    assert torch.equal(load_plain(path)["model"]["w"], torch.arange(3.0))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"a\.ckpt: not a readable checkpoint"):
        load_plain(path)
    torch.save(RunFolder("x"), path)  # a pickled object of ours
    with pytest.raises(ValueError, match=r"a\.ckpt: not a readable checkpoint"):
        load_plain(path)


def test_no_flipped_bit_of_a_checkpoint_changes_what_is_loaded(tmp_path):
    path, weights = tmp_path / "a.ckpt", torch.randn(40, 10)
    save_atomic({"stage": "prune", "model": {"w": weights}}, path)
    whole, refused = path.read_bytes(), 0
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            loaded = load_plain(path, "model")
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path}: not a readable checkpoint") and "\n" not in str(error)
        else:
            assert torch.equal(loaded["model"]["w"], weights)
    assert refused > 200  # all flips inside of the 1,600 bytes of numbers


def test_checkpoint_of_something_else_is_named(tmp_path):
    for content in ([1, 2], {"stage": "prune"}):
        save_atomic(content, tmp_path / "a.ckpt")
        with pytest.raises(ValueError, match=r"a\.ckpt: not a readable checkpoint \(holds no model\)"):
            load_plain(tmp_path / "a.ckpt", "model")
