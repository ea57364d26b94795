"""Starts a real SD.Next inside the test process, as its launch.py does but for the server, with this project in it.

Runs before anything imports `modules`: in that process the package of this name is the UI's. Its own folders are not
written to: everything it keeps goes to a folder of the test run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
CONFIG = {"sd_checkpoint_autoload": False, "sdnq_dequantize_compile": False, "te_shared_te": False}


def boot(root: Path, data: Path) -> None:
    """`root`: a checkout of SD.Next whose requirements this Python has; `data`: where it keeps its files."""
    (data / "extensions").mkdir(parents=True)
    (data / "extensions" / "sdnext-ltx").symlink_to(PROJECT, target_is_directory=True)
    (data / "config.json").write_text(json.dumps(CONFIG))
    arguments, folder, hook = sys.argv, os.getcwd(), sys.excepthook
    skip = [f"--skip-{what}" for what in ("all", "git", "torch", "requirements", "env")]
    sys.argv = ["launch.py", *skip, "--data", str(data), "--log", str(data / "log.txt")]
    sys.path.insert(0, str(root))
    os.chdir(root)
    try:
        _start()
    finally:
        sys.argv, sys.excepthook = arguments, hook
        os.chdir(folder)
    import torch

    torch.set_num_threads(1)


def _start() -> None:
    """What launch.main does before it starts the server."""
    launch: Any = __import__("launch")
    installer: Any = __import__("installer")
    launch.init_args()
    installer.args = launch.args
    installer.setup_logging(debug=False, trace=False, filename=launch.args.log)
    installer.read_options()
    launch.init_paths()
    installer.extensions_preload(launch.parser)
    launch.args = installer.parse_args(launch.parser)
    __import__("webui").start_common()
    __import__("modules.modeldata")
    sys.modules["modules.modeldata"].model_data.locked = False  # as the server does when it has started
