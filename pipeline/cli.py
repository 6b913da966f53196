"""Turns every failure of a command into one clear line and an exit code."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from itertools import takewhile
from typing import ParamSpec, TypeVar

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from rich.console import Console

from sparsign.configs.help import MOST_LISTED, print_help
from sparsign.configs.options import near_match
from sparsign.pipeline import plugins
from sparsign.pipeline.folder import RunFolder

HANDED_OVER = "SPARSIGN_ONE_LINE"
"""Environment variable: HYDRA_FULL_ERROR was set by `run_cli`, here or in the process that launched this one."""
WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1" and HANDED_OVER not in os.environ
EXTRAS = ("joblib", "optuna", "ray", "submitit")
"""Launchers and sweepers that are extras of ours; `submitit_local` is of the last."""
GROUPS = ("compressor", "model", "dataset", "trainer", "logger", "schedule")
"""A run has one member of each."""
MULTIRUN = {"-m", "--multirun"}
"""Put first: argparse takes them nowhere between the words that are swept."""
FAILED: list[str] = []
"""Jobs of a sweep that failed."""
P = ParamSpec("P")
T = TypeVar("T")


def run_cli(main: Callable[[], object], name: str) -> None:
    """Runs the Hydra main of the config `name`. On failure prints `error: <one line>` and exits with 1; tracebacks
    with HYDRA_FULL_ERROR=1."""
    fails_in_one_line(outside)()
    sys.argv[1:] = [spelled(argument) for argument in sys.argv[1:]]
    sweeps = bool(MULTIRUN & set(sys.argv[1:]))
    fails_in_one_line(lambda: [one_member(argument, sweeps) for argument in sys.argv[1:]])()
    if sweeps:
        sys.argv[1:] = ["-m", *[a for a in sys.argv[1:] if a not in MULTIRUN]]
    flags = {argument for argument in sys.argv[1:] if argument.startswith("-")}
    if flags and flags <= {"--help", "-h"}:
        overrides = [argument for argument in sys.argv[1:] if argument not in flags]
        main = partial(to_a_reader, partial(print_help, name, overrides))
    if WANTS_TRACEBACK:
        main()
        return
    # Have Hydra hand exceptions over instead of printing its own version of them.
    os.environ["HYDRA_FULL_ERROR"] = os.environ[HANDED_OVER] = "1"
    fails_in_one_line(main)()
    if FAILED:
        raise SystemExit(1)


def to_a_reader(show: Callable[[], object]) -> None:
    """`--help | head`: a reader that has seen enough and closed the pipe is no failure."""
    try:
        show()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end


def outside() -> None:
    """Takes the folders of plugins from the command line, and makes known what they and installed ones hold."""
    sys.argv[1:] = plugins.from_arguments(sys.argv[1:])
    plugins.register()


def spelled(argument: str) -> str:
    """`++compressor.ratios={conv1: 0.5}` and `++compressor.ratios.conv1=0.5` for the same without ++, which Hydra wants
    for keys that are not there yet."""
    return f"++{argument}" if re.match(r"compressor\.\w+(=\{|\.\w+=)", argument) else argument


def one_member(argument: str, sweeps: bool) -> None:
    """Raises ValueError for what leaves a group without a member or gives it several: `~model`, `model=[a,b]`."""
    word = re.fullmatch(rf"([~+]*)({'|'.join(GROUPS)})(=(.*))?", argument)
    if word is None:
        return
    sign, group, _, value = word.groups()
    several = value and (value.startswith("[") or (re.fullmatch(r"[\w,-]*,[\w,-]*", value) and not sweeps))
    if sign or several or value in (None, "", "null"):
        raise ValueError(f"{argument}: expected one member, {group}=NAME; to sweep over several: -m {group}=A,B")


def fails_in_one_line(task: Callable[P, T]) -> Callable[P, T]:
    """Around the task itself too: what leaves it as SystemExit is not announced by Hydra in a second line."""

    @wraps(task)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return task(*args, **kwargs)
        except KeyboardInterrupt:
            raise SystemExit(130) from None
        except Exception as e:
            if WANTS_TRACEBACK:
                raise
            print(f"error: {one_line(e)}", file=sys.stderr)
            raise SystemExit(1) from None

    return guarded


def one_line(error: BaseException) -> str:
    """What went wrong, in one line: the innermost cause that a user can act on."""
    root = error
    while isinstance(root, (HydraException, InstantiationException)) and root.__cause__ is not None:
        if isinstance(error, HydraException) and isinstance(root.__cause__, OmegaConfBaseException):
            return _config_error(error, root.__cause__)
        root = root.__cause__
    text = str(root) or type(root).__name__
    if isinstance(root, OmegaConfBaseException):
        return _config_error(error, root)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(root, OverrideParseException):
        told = lines[0].split(" See https")[0]
        return f"{root.override}: not as Hydra reads words ({told}); quote brackets and commas twice: 'option=\"a(1)\"'"
    if isinstance(root, HydraException):
        return _group_error(lines)
    if isinstance(root, OSError) and root.strerror and root.filename:
        wanted = "; expected a folder" if isinstance(root, (FileExistsError, NotADirectoryError)) else ""
        return f"{root.filename}: {root.strerror}{wanted}"
    if isinstance(root, (ValueError, OSError)):
        return " ".join(lines)
    return f"{type(root).__name__}: {' '.join(lines)} (HYDRA_FULL_ERROR=1 shows the traceback)"


def _config_error(outer: BaseException, cause: OmegaConfBaseException) -> str:
    key = cause.full_key or cause.key or ""
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) or re.search(r"Key '.*' (is )?not in ", str(cause)):
        parent = OmegaConf.to_container(cause.parent_node) if isinstance(cause.parent_node, DictConfig) else {}
        known, word = [str(k) for k in parent], str(cause.key)
        inside = [f"{k}.{word}" for k, node in parent.items() if isinstance(node, dict) and word in node]
        hint = f" (did you mean {' or '.join(inside)}?)" if inside else near_match(word, known)
        listed = ", ".join(k for k in known if not k.startswith("_")) or "none"
        return f"{key}: no such option{hint or f'; known: {listed}'}"
    override = re.search(r"(?:override|Could not override) '?([^'\n]+)", str(outer))
    named = override.group(1).rstrip(".") if override else key
    expected = re.search(r"'([^']*)' of type '(\w+)' could not be converted to (\w+)", str(cause))
    if expected:
        value = " ".join(expected.group(1).split())
        return f"{key}={value}: expected a value of type {expected.group(3).lower()}"
    first = next(line for line in str(cause).splitlines() if line.strip())
    return f"{named}: {first.strip()}" if named else first.strip()


def _group_error(lines: list[str]) -> str:
    """`model=resnet81: no such member of group model (did you mean resnet18?)` from Hydra's list of options."""
    missing = re.search(r"Could not find '([^']+)'", lines[0])
    if missing and "Available options" in " ".join(lines):
        group, _, name = missing.group(1).rpartition("/")
        first = next(i for i, line in enumerate(lines) if "Available options" in line) + 1
        options = list(takewhile(lambda line: not line.startswith("Config search path"), lines[first:]))
        many = f"{len(options)} members, listed by: ls configs/{group}"
        known = ", ".join(options) if len(options) <= MOST_LISTED else many
        if group.startswith("hydra/") and (extra := name.split("_")[0]) in EXTRAS:
            return f'{group}={name} needs a package: pip install "sparsign[{extra}]"'
        return f"{group}={name}: no such member of group {group}{near_match(name, options)}; available: {known}"
    return " ".join(lines)


@contextmanager
def resume_hint(folder: RunFolder, console: Console) -> Iterator[None]:
    """Ctrl-C inside ends the process with 130 and one line that says how to go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        if not folder.started:
            console.print("\ninterrupted before there was anything to keep")
            raise SystemExit(130) from None
        advice = f"add resume={folder.path} to the same command to go on where it stopped"
        console.print(f"\ninterrupted: {advice}", soft_wrap=True)
        raise SystemExit(130) from None
