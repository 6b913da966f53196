"""Tables are as wide as the terminal; where there is none, wide enough for what they tell."""

import io

import pytest

from sparsign.configs.screen import screen


@pytest.mark.parametrize(("columns", "width"), [(None, 120), ("72", 72)])
def test_width_without_a_terminal(monkeypatch, columns, width):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.__stdout__", io.StringIO())
    console = screen()
    assert console.width == width
    with console.capture() as shown:
        console.print("x" * width)
    assert shown.get() == "x" * width + "\n"
