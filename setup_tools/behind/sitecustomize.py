"""Makes a folder importable after everything that the Python has of its own; PYTHONPATH would put it before.

Python imports a module of this name when it starts. The folder is named by LTX_BEHIND, so that the programs which a
test starts find it too. A sitecustomize that the Python had before this one is run as well.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import PathFinder

HERE = os.path.dirname(os.path.abspath(__file__))
theirs = PathFinder.find_spec("sitecustomize", [path for path in sys.path if os.path.abspath(path) != HERE])
if theirs is not None and theirs.loader is not None:
    theirs.loader.exec_module(importlib.util.module_from_spec(theirs))
if os.environ.get("LTX_BEHIND"):
    sys.path.append(os.environ["LTX_BEHIND"])
