"""The self-refiner, a denoise callback: re-denoises chosen steps (arXiv 2601.18577).

Hosts load this folder by its path, under a name of their own, and register `callback.SelfRefiner()`. Importing it
costs no torch; `schedule.py` is the plan text, `refiner.py` the method, `seam.py` what attaches it to a pipeline.
"""
