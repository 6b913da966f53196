"""`key=value` arguments, as the commands of the project take them, for benchmarks without a config."""

from __future__ import annotations

import math
import sys


def key_values(page: str, defaults: dict[str, str]) -> dict[str, str]:
    """The command line's `key=value` over the defaults. Ends with the page for --help, with one line for what is wrong.

    page: the module's docstring, which says what each key means.
    """
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(page.strip())
        print("\nDefaults: " + ", ".join(f"{key}={value or 'none'}" for key, value in defaults.items()))
        sys.exit()
    given = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in defaults or not equals:
            sys.exit(f"{argument}: expected KEY=VALUE, KEY one of {', '.join(defaults)} (--help says more)")
        given[key] = value
    return defaults | given


def positive(chosen: dict[str, str], key: str) -> float:
    """One option's number above 0; ends with one line for anything else."""
    try:
        value = float(chosen[key])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        sys.exit(f"{key}={chosen[key]}: expected a number above 0")
    return value


def numbers(chosen: dict[str, str], key: str) -> list[int]:
    """One option's whole numbers from 1, separated by commas; ends with one line for anything else."""
    parts = chosen[key].split(",")
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        sys.exit(f"{key}={chosen[key]}: expected whole numbers from 1, separated by commas")
    return [int(part) for part in parts]


def shapes(chosen: dict[str, str], key: str) -> list[tuple[int, int]]:
    """One option's layers as channels and side of the image, `64x32,128x16`; ends with one line for anything else."""
    found = [part.split("x") for part in chosen[key].split(",")]
    if not all(len(pair) == 2 and all(side.isdecimal() and int(side) >= 1 for side in pair) for pair in found):
        sys.exit(f"{key}={chosen[key]}: expected CHANNELSxSIDE such as 64x32, separated by commas")
    return [(int(channels), int(side)) for channels, side in found]


def shares(chosen: dict[str, str], key: str) -> list[float]:
    """One option's shares from 0 to below 1, separated by commas; ends with one line for anything else."""
    try:
        found = [float(part) for part in chosen[key].split(",")]
    except ValueError:
        found = [math.nan]
    if not all(0 <= share < 1 for share in found):
        sys.exit(f"{key}={chosen[key]}: expected shares from 0 to below 1, separated by commas")
    return found
