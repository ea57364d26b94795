"""Benchmarks: what features cost and save, as ratios within one run. See bench/README.md."""
