"""One file per command of `python -m sparsign.reports`."""
