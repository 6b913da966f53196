"""What runs between the stages' bars: testing, packing, measuring, each a line with a clock while it lasts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def phase(console: Console, text: str, shown: bool = True) -> AbstractContextManager:
    """Shows `text` on a terminal for as long as the block runs, and leaves nothing behind; a log gets no line."""
    if not shown or not console.is_terminal or console.quiet:
        return nullcontext()
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    line = Progress(*columns, console=console, transient=True, refresh_per_second=2)  # the block may time things
    line.add_task(text, total=None)
    return line
