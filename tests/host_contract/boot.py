"""Starts a real SD.Next inside the test process, as its launch.py does but for the server, with this project in it.

Runs before anything imports `modules`: in that process the package of this name is the UI's. Its own folders are not
written to: everything it keeps goes to a folder of the test run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
CONFIG = {"sd_checkpoint_autoload": False, "sdnq_dequantize_compile": False, "te_shared_te": False}


def host_root() -> Path | None:
    """The checkout of SD.Next to test in: `--host-root PATH` or LTX_HOST_ROOT; wanted before pytest reads options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--host-root", default=os.environ.get("LTX_HOST_ROOT", ""))
    named = parser.parse_known_args(sys.argv[1:])[0].host_root
    return Path(named).resolve() if named else None


def arguments(data: Path, *, extension: bool = True) -> list[str]:
    """A folder for the UI's files, with this project among its extensions or not, and the arguments to use it with.
    One that a UI has used already stays as it is."""
    if not (data / "extensions").is_dir():
        (data / "extensions").mkdir(parents=True)
        if extension:
            (data / "extensions" / "sdnext-ltx").symlink_to(PROJECT, target_is_directory=True)
        (data / "config.json").write_text(json.dumps(CONFIG))
    skip = [f"--skip-{what}" for what in ("all", "git", "torch", "requirements", "env")]
    return ["launch.py", *skip, "--data", str(data), "--log", str(data / "log.txt")]


def boot(root: Path, data: Path, *, extension: bool = True) -> None:
    """`root`: a checkout of SD.Next whose requirements this Python has; `data`: where it keeps its files."""
    before, folder, hook = sys.argv, os.getcwd(), sys.excepthook
    sys.argv = arguments(data, extension=extension)
    sys.path.insert(0, str(root))
    os.chdir(root)
    try:
        _start()
    finally:
        sys.argv, sys.excepthook = before, hook
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
