"""Markdown in pieces: a table's lines, a folded section."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def cells(*values: object) -> str:
    """One line of a table; a bar inside a value is escaped."""
    return "| " + " | ".join(str(value).replace("|", "\\|").replace("\n", " ") for value in values) + " |"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table's lines, and an empty one after it."""
    return [cells(*head), "|" + "---|" * len(head), *(cells(*row) for row in rows), ""]


def folded(title: str, lines: Iterable[str]) -> list[str]:
    """Lines behind a title that is clicked open."""
    return ["<details>", f"<summary>{title}</summary>", "", *lines, "</details>", ""]
