"""What `--help` shows: the members of every group, and every option with its value, meaning and allowed values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.table import Column, Table
from rich.text import Text

from sparsign.configs.members import names as names_of
from sparsign.configs.options import STAGE_KINDS, allowed
from sparsign.configs.screen import screen

MOST_LISTED = 20


def members(group: str) -> str:
    """`auto cpu ddp gpu` for `trainer`; long groups are only counted."""
    names = names_of(group)
    return " ".join(names) if len(names) <= MOST_LISTED else f"{len(names)} members: ls configs/{group}"


def typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, ListConfig):
        return f"[{','.join(map(typed, value))}]"
    if isinstance(value, DictConfig):
        return "{" + ",".join(f"{k}:{typed(v)}" for k, v in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def options(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(`option=value`, help line, allowed values) of a typed node; the stages come as one, with values `1|3|3|2`."""
    for name, field in OmegaConf.get_type(config).__dataclass_fields__.items():
        if name == STAGE_KINDS[0]:
            for rows in zip(*(options(config[kind], f"{prefix}<stage>.") for kind in STAGE_KINDS), strict=True):
                shown = dict.fromkeys(row[0].split("=")[1] for row in rows)
                each = shown if len(shown) == 1 else [row[0].split("=")[1] for row in rows]
                yield f"{rows[0][0].split('=')[0]}={'|'.join(each)}", *rows[0][1:]
        elif name not in ("_target_", "name") and field.metadata:
            limits = allowed(field.metadata)
            yield f"{prefix}{name}={typed(config[name])}", field.metadata["help"], "" if "-inf" in limits else limits


def overview(_root_: DictConfig) -> str:
    """The aligned lines, a paragraph for each group, as wide as the terminal; dollar signs doubled for Hydra."""
    table = Table.grid(Column(overflow="fold", max_width=40), Column(), padding=(0, 2))
    groups = [k for k, v in _root_.items() if isinstance(v, DictConfig) and OmegaConf.get_type(v) is not dict]
    for group in [k for k in groups if k != "hydra"] + [""]:
        node = _root_[group] if group else _root_
        choice = f"{group}={node.name}" if "name" in node else group or "the run"
        table.add_row(Text(choice, "bold"), Text(OmegaConf.get_type(node).__doc__.splitlines()[0], "bold"))
        for name, text, limits in options(node, f"{group}." if group else ""):
            table.add_row(Text(f"  {name}"), Text.assemble(text, "  " * bool(limits), (limits, "cyan")))
        table.add_row()
    console = screen()
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines()).replace("$", "$$")


def print_help(name: str, overrides: list[str]) -> None:
    """What Hydra's own --help prints, without its walk over all files of all groups, which takes seconds."""
    with initialize_config_dir(str(Path(__file__).parent), version_base="1.3"):
        shown = compose(name, overrides, return_hydra_config=True).hydra.help
    print(f"{shown.template}\n{shown.footer}".replace("$$", "$"))


def register_help() -> None:
    """`${members:group}` and `${options:}` for the help templates."""
    OmegaConf.register_new_resolver("members", members, replace=True)
    OmegaConf.register_new_resolver("options", overview, replace=True)
