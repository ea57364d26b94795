"""Benchmarks: what features cost and save, as ratios within one run. See bench/README.md.

Their processes wait as those of the command line do (workers that spin take the cores from each other), and may keep
Python's bytecode, as everywhere else: where that is forbidden, every start compiles all that it imports.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
