"""What runs between the bars is said on a terminal and leaves a log alone."""

import io

from rich.console import Console

from sparsign.pipeline.phases import phase


def shown_by(terminal: bool, shown: bool = True) -> str:
    file = io.StringIO()
    with phase(Console(file=file, force_terminal=terminal), "packing", shown):
        pass
    return file.getvalue()


def test_a_phase_is_named_on_a_terminal_only_and_only_where_progress_is_wanted():
    assert "packing" in shown_by(terminal=True)
    assert shown_by(terminal=False) == shown_by(terminal=True, shown=False) == ""
