"""Faults at every seam of a run, and what must hold behind each of them."""
