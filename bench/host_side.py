"""`python -m bench.host_side --host-root PATH [--pairs 5]`: our LTX tab beside SD.Next's own, in one process of it.

Run with the Python of that SD.Next. Its own tab's code is kept before ours takes the names; then both make the same
requests with LTX-Nano, in turn, through what their Generate buttons call. Gives the ratio of CPU seconds, ours over
the host's, by pairs; beside it the ratio that would be left if all of ours but its models' forwards and its file were
free; the memory that is held after a job, and at most in it; and the share of ours that is none of forwards, prompt,
decoding, file, and the host's own `process_images`. Ends with a line of JSON.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.kit import ROOT, Gate, end

PROMPT = "a small red ball moving right on black"
MODULES = ("text_encoder", "connectors", "transformer", "vae.encoder", "vae.decoder", "audio_vae.decoder", "vocoder")


@dataclass(frozen=True)
class Case:
    """A request. `most`: the limit of the ratio; `own`: that of the share that is none of the work itself."""

    name: str
    model: str
    size: int
    frames: int
    most: float
    steps: int = 8
    two: bool = False
    own: float | None = None


CASES = (
    Case("Distilled, one stage, 256x256x49", "LTX-Nano 2.3 T2V Distilled", 256, 49, 0.75),
    Case("Distilled, two stages, 256x256x49", "LTX-Nano 2.3 T2V Distilled", 256, 49, 0.70, two=True),
    Case("Dev, 8 steps, 128x128x25", "LTX-Nano 2.3 T2V Dev", 128, 25, 1.0),
    Case("Distilled, one stage, 256x256x97", "LTX-Nano 2.3 T2V Distilled", 256, 97, 0.75, own=0.05),
)


class Clock:
    """CPU seconds of this thread by what was done, each second counted once, for the innermost."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = time.thread_time()

    def switch(self, to: str | None) -> None:
        """Enter `to`, or leave what was entered last."""
        now = time.thread_time()
        current = self._stack[-1] if self._stack else "other"
        self.spent[current] = self.spent.get(current, 0.0) + now - self._since
        self._since = now
        if to is None:
            self._stack.pop()
        else:
            self._stack.append(to)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)  # the host looks at signatures
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.switch(name)
            try:
                return call(*args, **kwargs)
            finally:
                self.switch(None)

        return timed


class Tabs:
    """Both tabs in one process: the host's own, taken before ours stands before it, and ours."""

    def __init__(self, root: Path) -> None:
        from tests.host_contract.boot import boot

        boot(root, Path(tempfile.mkdtemp(prefix="ltx-side-")), extension=False)
        self.theirs = importlib.import_module("modules.ltx.ltx_process")
        loaded = [name for name in sys.modules if name.startswith("modules.ltx.")]
        for name in (*loaded, "modules.video_models.video_load", "modules.video_models.video_overrides"):
            sys.modules.pop(name, None)
        sys.path.insert(0, str(ROOT / "scripts"))
        importlib.import_module("ltx_extension")  # installs itself, as at the host's start
        self.ours = importlib.import_module("modules.ltx.hosts.sdnext_tab")
        from modules.ltx.hosts import nano, places

        # The host's tab takes its upsampler from the hub: here that of LTX-Nano, from this machine.
        upsampler = nano.ensure("2.3-upsampler", places.cache_folder())
        vars(self.theirs)["upsample_repo_id_23"] = str(upsampler)

    def run_theirs(self, case: Case) -> Path:
        size, scale = case.size, 1.0 if "Distilled" in case.model else 3.0
        media = (1.0, None, None, None, None, -1, 0)
        output = (24, 0, "libx264", "mp4", "crf:16", True, False, False, True)
        shown = self.theirs.run_ltx(
            *(
                "task(theirs)",
                "",
                case.model,
                PROMPT,
                "",
                [],
                size,
                size,
                case.frames,
                case.steps,
                0,
                scale,
                -1.0,
                False,
            ),
            *(1, False, 2.0, case.two, 0.4, *media, 0.05, 0.025, *output, True, []),
        )
        return Path(self._last(shown))

    def run_ours(self, case: Case) -> Path:
        from modules.ltx import ltx_ui
        from modules.ltx.hosts.sdnext_rows import caps_of

        caps = caps_of(case.model)
        assert caps is not None
        values = {one.control.name: one.value for one in ltx_ui.shown(caps)}
        asked = {"width": case.size, "height": case.size, "frames": case.frames, "seed": 1, "refine": case.two}
        if not caps.is_distilled:
            asked["steps"] = case.steps
        output = (24, 0, "libx264", "mp4", "crf:16", True, False, False, True)
        shown = self.ours.run("task(ours)", "", case.model, PROMPT, "", [], *output, *(values | asked).values())
        return Path(self._last(shown))

    @staticmethod
    def _last(shown: Iterator[Any]) -> str:
        path, words = list(shown)[-1]
        if not path:
            raise SystemExit(f"no video: {words}")
        return str(path)

    @contextmanager
    def counted(self, clock: Clock) -> Iterator[None]:
        """The models' forwards, the host's `process_images` and our phases told apart."""
        shared: Any = sys.modules["modules.shared"]
        with ExitStack() as undo:
            for name in MODULES:
                module = shared.sd_model
                for part in name.split("."):
                    module = getattr(module, part, None)
                if module is not None:
                    enter = module.register_forward_pre_hook(lambda *_: clock.switch("forwards"))
                    leave = module.register_forward_hook(lambda *_: clock.switch(None))
                    undo.callback(enter.remove)
                    undo.callback(leave.remove)
            processing: Any = importlib.import_module("modules.processing")
            stages: Any = importlib.import_module("modules.ltx.stages")
            process: Any = importlib.import_module("modules.ltx.ltx_process")
            pipe = type(shared.sd_model)
            for owner, attribute, name in (
                (processing, "process_images", "process_images"),
                (stages, "encode", "prompt"),
                (process, "write", "decoding and file"),
                (pipe, "__call__", "pipelines"),
            ):
                before = getattr(owner, attribute)
                undo.callback(setattr, owner, attribute, before)
                setattr(owner, attribute, clock.around(name, before))
            yield


@dataclass(frozen=True)
class Cost:
    """Of one job: CPU and wall seconds; MiB that the process holds more after it, and held more at most."""

    cpu: float
    wall: float
    added: float
    peak: float


def resident() -> int:
    """Bytes that this process holds (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def job(make: Callable[[Case], Path], case: Case) -> Cost:
    from modules.ltx.hosts import machine

    before = resident()
    machine.peak_memory("cpu")
    cpu, wall = time.process_time(), time.perf_counter()
    make(case)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = machine.peak_memory("cpu") or before
    return Cost(cpu, wall, (resident() - before) / 2**20, (peak - before) / 2**20)


def measured(tabs: Tabs, case: Case, pairs: int) -> dict[str, Any]:
    makers = {"host": tabs.run_theirs, "ours": tabs.run_ours}
    for make in makers.values():
        make(case)
    rows: dict[str, list[Cost]] = {name: [] for name in makers}
    for number in range(pairs):
        for name in list(makers)[:: 1 if number % 2 else -1]:
            rows[name].append(job(makers[name], case))
    clock = Clock()
    with tabs.counted(clock):
        began = time.process_time()
        clock.switch("all")
        tabs.run_ours(case)
        clock.switch(None)
        total = time.process_time() - began
    work = clock.spent.get("forwards", 0.0) + clock.spent.get("decoding and file", 0.0)
    free = sum(clock.spent.get(name, 0.0) for name in ("all", "pipelines"))
    pairs_of = list(zip(rows["ours"], rows["host"], strict=True))
    ratios = [ours.cpu / theirs.cpu for ours, theirs in pairs_of]

    def medians(what: str) -> dict[str, float]:
        return {name: round(statistics.median(getattr(one, what) for one in told), 3) for name, told in rows.items()}

    return {
        "case": case.name,
        **{what: medians(what) for what in ("cpu", "wall", "added", "peak")},
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": statistics.median(ratios),
        "wall ratio": statistics.median(ours.wall / theirs.wall for ours, theirs in pairs_of),
        "floor": work / medians("cpu")["host"],
        "own share": free / total,
        "spent": {name: round(value, 3) for name, value in clock.spent.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.host_side", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host-root", type=Path, required=True, metavar="PATH", help="a checkout of SD.Next")
    parser.add_argument("--pairs", type=int, default=5, help="jobs of each tab, interleaved (default %(default)s)")
    asked = parser.parse_args(argv)
    tabs = Tabs(asked.host_root.resolve())
    found, gates = [], list[Gate]()
    for case in CASES:
        told = measured(tabs, case, asked.pairs)
        found.append(told)
        print(told, flush=True)
        gates.append(Gate(f"{case.name}: CPU of ours over the host's", told["ratio"], case.most))
        if case.own is not None:
            gates.append(Gate(f"{case.name}: share that is no work", told["own share"], case.own))
        limit = max(told["added"]["host"] / 2, 16.0) if case.two else 16.0
        gates.append(Gate(f"{case.name}: memory held after a job", told["added"]["ours"], limit, "MiB"))
    return end("host_side", {"cases": found}, gates)


if __name__ == "__main__":
    sys.exit(main())
