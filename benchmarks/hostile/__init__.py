"""Hostile files, bit rot, kills: what comes of them, with counts, seed and duration. `python -m benchmarks.hostile`."""
