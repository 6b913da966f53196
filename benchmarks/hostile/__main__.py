"""Hostile files, bit rot, kills: what comes of them, with counts, seed and duration.

    python -m benchmarks.hostile [bombs] [flips] [atomic] [full] [fuzz] [kills] [--seed 0] [--seconds 60] [--kills 50]

bombs   files of a few bytes that ask for time or memory, each read in a process of its own under a memory limit
flips   every single-bit flip of small packed files, random ones of a checkpoint
atomic  SIGKILL at random instants of writing a packed file, a checkpoint, a text: old or new content must be there
full    a disk that takes no more bytes (RLIMIT_FSIZE): the line that is printed
fuzz    for --seconds of CPU time: packed files with raw, checksum-repaired, header-edited and section-edited mutations
kills   train.py over methods, killed --kills times in all at random instants and resumed: all files must end equal

Without names: all but kills. Exits with 1 where anything but the one class of error came out, damage was accepted, or a
resumed run differs.
"""

from __future__ import annotations

import argparse
import sys

import torch

from benchmarks.hostile.atomic import run_atomic
from benchmarks.hostile.bombs import run_bombs
from benchmarks.hostile.flips import run_flips
from benchmarks.hostile.full import run_full
from benchmarks.hostile.fuzz import run_fuzz
from benchmarks.hostile.kills import run_kills

PARTS = {
    "bombs": run_bombs,
    "flips": run_flips,
    "atomic": run_atomic,
    "full": run_full,
    "fuzz": run_fuzz,
    "kills": run_kills,
}


def main() -> None:
    """Run the parts named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="which parts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="of fuzzing, CPU time")
    parser.add_argument("--kills", type=int, default=50, help="over all methods")
    options = parser.parse_args()
    torch.set_num_threads(1)
    good = True
    for name in options.parts or [name for name in PARTS if name != "kills"]:
        print(f"\n{name}", flush=True)
        good &= PARTS[name](options)
    sys.exit(not good)


if __name__ == "__main__":
    main()
