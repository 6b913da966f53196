"""Carries data and run folders to a machine and back in pieces of limited size: the hands of `gpu_day.sh`.

A parcel is a tar file cut into pieces `KIND-TIME.K-of-N`, which are collected in `<place>/pieces` until all are there.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import shutil
import sys
import tarfile
import time
from pathlib import Path

MIB = 1 << 20
KINDS = ("1-results", "2-stages", "3-midstage")
"""What comes back, the most wanted first."""
Files = dict[str, Path]
"""Name in the parcel -> file or folder."""


def pack(mirror: Path, inbox: Path, data: Path, piece: float) -> None:
    """A parcel for a machine that has nothing: the data set, and every row that is begun and not finished."""
    if not data.is_dir():
        raise FileNotFoundError(f"DATA={data}: there is no such folder")
    begun = [run for run in runs(mirror) if not finished(run)]
    files: Files = {f"data/{data.name}": data}
    for run in begun:
        files |= results(run) | checkpoints(run)
    for old in inbox.glob("*-of-*"):
        old.unlink()
    pieces = cut_up(files, inbox, "machine", piece)
    size = sum(p.stat().st_size for p in pieces) / MIB
    print(f"{len(pieces)} pieces in {inbox}, {size:.0f} MiB: the data, and {len(begun)} rows to go on with")


def take(inbox: Path, place: Path) -> bool:
    """Keeps the pieces that lie in `inbox`, and unpacks the parcels that are whole, oldest first, each once.

    Returns whether nothing is missing.
    """
    pieces, told = place / "pieces", place / "taken.json"
    pieces.mkdir(parents=True, exist_ok=True)
    taken = json.loads(told.read_text()) if told.is_file() else []
    for path in inbox.glob("*-of-*") if inbox.is_dir() else []:
        if path.stem not in taken:
            shutil.copyfile(path, pieces / path.name)
    missing = False
    for parcel in sorted({path.stem for path in pieces.iterdir()}, key=lambda name: name.rpartition("-")[2]):
        found = sorted(pieces.glob(f"{parcel}.*"))
        count = int(found[0].name.rpartition("-of-")[2])
        print(f"{parcel}: {len(found)} of {count} pieces")
        if len(found) < count:
            missing = True
            continue
        with tarfile.open(fileobj=io.BytesIO(b"".join(path.read_bytes() for path in found))) as tar:
            tar.extractall(place, filter="data")
        told.write_text(json.dumps([*taken, parcel]))
        taken.append(parcel)
        for path in found:
            path.unlink()
        _remember(place, _new(place))  # what came from there needs not go there again
    return not missing


def give(store: Path, out: Path, piece: float, count: int) -> None:
    """At most `count` pieces of what is new since it was last given; what is left over waits for the next window.

    The stage under way is only sent anew when all of its last pieces are gone, or none would ever be whole; unless a
    stage has been finished, which makes them useless.
    """
    outbox, new = store / "outbox", _new(store)
    if any(_kind(path) == KINDS[1] for path in new.values()):
        for path in outbox.glob(f"{KINDS[2]}*"):
            path.unlink()
    waiting = {path.name.rpartition("-")[0] for path in outbox.glob("*")}
    for kind in KINDS:
        files = {name: path for name, path in new.items() if _kind(path) == kind}
        if files and (kind == KINDS[0] or not any(name.startswith(kind) for name in waiting)):
            cut_up(files, outbox, kind, piece)
            _remember(store, files)
    pieces = sorted(outbox.glob("*"))
    out.mkdir(parents=True, exist_ok=True)
    for path in pieces[:count]:
        shutil.move(path, out / path.name)
    left = f", {len(pieces) - count} wait for another window" if len(pieces) > count else ""
    print(f"{min(count, len(pieces))} pieces in {out}{left}")


def cut_up(files: Files, folder: Path, kind: str, piece: float) -> list[Path]:
    """Writes a tar of the files in pieces of at most `piece` MiB. Returns their paths."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:  # weights and pictures hardly compress
        for name, path in files.items():
            if path.parent.name == "checkpoints" and not _needed_whole(path):
                info, content = tar.gettarinfo(path, name), _without_weights(path)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                tar.add(path, name)
    content, step = packed.getvalue(), int(piece * MIB)
    folder.mkdir(parents=True, exist_ok=True)
    count, stamp, paths = math.ceil(len(content) / step), time.time_ns(), []
    for k in range(count):
        paths.append(folder / f"{kind}-{stamp}.{k + 1:03d}-of-{count:03d}")
        paths[-1].write_bytes(content[k * step : (k + 1) * step])
    return paths


def table(mirror: Path, names: list[str]) -> None:
    """One line for every row: how far it is."""
    for name in names:
        run = mirror / "runs" / name
        failed, metrics = run.with_name(f"{name}.failed"), run / "metrics.jsonl"
        state = "missing"
        if finished(run):
            state = f"finished: {100 * json.loads((run / 'report.json').read_text())['accuracy']['top1']:.2f} %"
        elif failed.is_file():
            state = f"failed: {failed.read_text().strip()}"
        elif metrics.is_file() and (rows := metrics.read_text().splitlines()):
            row = json.loads(rows[-1])
            state = f"begun: {row['stage']}, " + (f"epoch {row['epoch'] + 1}" if "epoch" in row else "finished")
        print(f"{name:40} {state}")


# -- run folders -------------------------------------------------------------------------------------------------------


def runs(place: Path) -> list[Path]:
    return sorted(path.parent for path in place.glob("runs/*/config.yaml"))


def finished(run: Path) -> bool:
    return (run / "report.json").is_file() and (run / "model.sparsign").is_file()


def results(run: Path) -> Files:
    """Everything that is small: config, curves, report, packed file, log."""
    files = {f"runs/{run.name}/{path.name}": path for path in run.iterdir() if path.is_file() and path.name != ".lock"}
    beside = (run.with_name(f"{run.name}.{end}") for end in ("log", "failed"))
    return files | {f"runs/{path.name}": path for path in beside if path.is_file()}


def checkpoints(run: Path) -> Files:
    """What train.py needs to resume a run that is not finished: without a stage under way that is over by now."""
    ages = {path: path.stat().st_mtime for path in sorted(run.glob("checkpoints/*.ckpt"))}
    newest = max(ages.values(), default=0)
    files = [path for path, age in ages.items() if path.name != "mid_stage.ckpt" or age == newest]
    return {f"runs/{run.name}/checkpoints/{path.name}": path for path in files}


def _needed_whole(path: Path) -> bool:
    """True of the stage under way, and of the last that is finished: the weights of others are not read again."""
    stages = [p for p in path.parent.glob("*.ckpt") if p.stem != "mid_stage"]
    return path.stem == "mid_stage" or path == max(stages, key=lambda p: p.stat().st_mtime_ns)


def _without_weights(path: Path) -> bytes:
    import torch  # only here: everything else starts at once

    content = io.BytesIO()
    state = torch.load(path, map_location="cpu", weights_only=True)
    torch.save({key: value for key, value in state.items() if key != "model"}, content)
    return content.getvalue()


def _kind(path: Path) -> str:
    return KINDS[(path.parent.name == "checkpoints") + (path.name == "mid_stage.ckpt")]


def _new(place: Path) -> Files:
    """What was not given as it is now."""
    told = _sent(place)
    files: Files = {}
    for run in runs(place):
        files |= results(run) | ({} if finished(run) else checkpoints(run))
    return {name: path for name, path in files.items() if told.get(name) != path.stat().st_mtime_ns}


def _remember(place: Path, files: Files) -> None:
    told = _sent(place) | {name: path.stat().st_mtime_ns for name, path in files.items()}
    (place / "sent.json").write_text(json.dumps(told))


def _sent(place: Path) -> dict[str, int]:
    path = place / "sent.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, folders in {"pack": ("mirror", "inbox"), "take": ("inbox", "place"), "give": ("store", "out")}.items():
        command = commands.add_parser(name)
        for folder in folders:
            command.add_argument(folder, type=Path)
        if name != "take":
            command.add_argument("--piece", type=float, required=True, help="MiB of a piece")
        if name == "pack":
            command.add_argument("--data", type=Path, required=True)
        if name == "give":
            command.add_argument("--count", type=int, required=True, help="pieces at most")
    listing = commands.add_parser("list")
    listing.add_argument("mirror", type=Path)
    listing.add_argument("names", nargs="*")
    told = parser.parse_args()
    try:
        if told.command == "pack":
            pack(told.mirror, told.inbox, told.data, told.piece)
        elif told.command == "take":
            sys.exit(0 if take(told.inbox, told.place) else 3)
        elif told.command == "give":
            give(told.store, told.out, told.piece, told.count)
        else:
            table(told.mirror, told.names)
    except OSError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
