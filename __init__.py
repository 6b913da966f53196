"""Sparsign: networks whose weights are ternary or binary and structurally pruned, from training to one small file.

The folders of the repository are this package's subpackages (pyproject.toml maps it onto the repository's root).
Importing it is cheap: nothing below is loaded before it is asked for.
"""
