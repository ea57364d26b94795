"""`python -m modules.ltx`: dispatch, exit codes, and errors as one line.

0 done, 2 bad request, 3 cancelled, 4 out of memory, 1 anything else.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.ltx.cli import build_parser, encoding_of, print_json, processes_of, request_of
from modules.ltx.errors import Cancelled, LTXError, RequestError
from modules.ltx.hosts import ranks
from modules.ltx.ltx_util import random_seed
from modules.ltx.quiet import quiet_libraries

if TYPE_CHECKING:
    from modules.ltx.plan import Plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. Errors of ours are one line on stderr, never a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Before torch is imported: its worker threads then sleep at a barrier instead of spinning. On two
    # busy cores a nano clip took 69 s spinning and 12 s sleeping; on idle ones it makes no difference.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _stop)  # a polite kill leaves as little behind as Ctrl-C
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "models": models,
        "plan": plan,
        "generate": generate,
        "serve": serve,
        **dict.fromkeys(("queue", "draft", "finish"), queue),
    }
    try:
        args = build_parser().parse_args(argv)
        args.argv = argv
        commands[args.command](args)
    except KeyboardInterrupt:
        return _failed(Cancelled("cancelled; nothing was written"), argv)
    except LTXError as error:
        return _failed(error, argv)
    except BrokenPipeError:  # `models | head`
        sys.stderr.close()
        return 1
    return 0


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _failed(error: LTXError, argv: Sequence[str]) -> int:
    sentence = " ".join(str(error).split())
    if ranks.here() is not None:  # who started the processes tells what ended them, once
        ranks.report(error)
        return error.exit_code
    if "--json" in argv:
        print_json({"error": {"type": type(error).__name__, "message": sentence, "exit_code": error.exit_code}})
    print(f"{'' if isinstance(error, Cancelled) else 'error: '}{sentence}", file=sys.stderr)
    return error.exit_code


def _host(args: argparse.Namespace, **more: Any) -> Any:
    from modules.ltx.hosts.embedded import EmbeddedHost, Settings

    outputs = Path(getattr(args, "outputs", "outputs"))
    settings = Settings(
        outputs,
        device=args.device,
        dtype=args.dtype,
        offload=args.offload,
        offline=args.offline,
        share=not args.no_share,
        quantize=args.quantize,
        quantize_parts=tuple(filter(None, args.quantize_parts.split(","))),
        processes=getattr(args, "processes", 1),
    )
    return EmbeddedHost(settings, **more)


def models(args: argparse.Namespace) -> None:
    """Every variant, with what it can do and whether it can run here."""
    from modules.ltx.front import variants
    from modules.ltx.hosts.embedded import EmbeddedHost

    rows = variants(EmbeddedHost())
    if args.json:
        print_json([caps.to_json() for caps in rows])
        return
    from rich.console import Console

    from modules.ltx.cli_show import models_markdown, models_table

    if args.markdown:
        print(models_markdown(rows))
        return
    console = Console()
    console.print(models_table(rows, console.width))


def plan(args: argparse.Namespace) -> None:
    """What would be made."""
    from modules.ltx.front import settle

    settled = settle(request_of(args), _host(args))
    if args.json:
        print_json(settled.to_json())
        return
    from rich.console import Console

    from modules.ltx.cli_show import plan_text

    plan_text(settled, Console())


def generate(args: argparse.Namespace) -> None:
    """Make the video, here or by several processes together; its path is the last line of stdout."""
    place, count = ranks.here(), processes_of(args)
    if place is None:
        return _make(args) if count == 1 else _launch(args, count)
    args.device, args.processes = ranks.device_of(place, args.device), place.count
    with ranks.joined(place, args.device):
        return _make(args, together=True) if place.first else _follow(args)


def _launch(args: argparse.Namespace, count: int) -> None:
    """Start the processes, once everything that can be refused without them has been."""
    from modules.ltx.borrow import check_writable
    from modules.ltx.front import settle

    settle(request_of(args), _host(args))
    path, _ = _target(args.output), encoding_of(args)
    check_writable(path.parent if path else Path(args.outputs))
    ranks.launch(count, args.argv)


def _follow(args: argparse.Namespace) -> None:
    """The part of a process that is not the first: all but to decode, to write and to show."""
    import tempfile

    from modules.ltx.front import settle
    from modules.ltx.ltx_process import run
    from modules.ltx.stages import ordered

    quiet_libraries()
    host = _host(args)
    settled = _seeded(settle(request_of(args), host))
    with tempfile.TemporaryDirectory() as folder:  # for a name; nothing is written there
        run(settled, host, path=Path(folder) / "video.mp4", until=ordered(settled)[-1][0])


def _seeded(settled: Plan) -> Plan:
    """The plan with the first process's seed, in all of them."""
    return settled.with_seed(ranks.same(random_seed() if settled.seed is None else settled.seed))


def _make(args: argparse.Namespace, *, together: bool = False) -> None:
    from rich.console import Console

    from modules.ltx.borrow import check_writable
    from modules.ltx.cli_show import Bar, memory_text, plan_text, timings_text
    from modules.ltx.front import settle

    console = Console(stderr=True)
    bar = Bar(console)
    host = _host(args, on_event=bar.show)
    request = request_of(args)
    settled = settle(request, host)
    path, encoding = _target(args.output), encoding_of(args)
    check_writable(path.parent if path else host.settings.outputs)
    if console.is_terminal:
        plan_text(settled, console)
    with bar:
        from modules.ltx.ltx_process import run  # torch and diffusers: seconds

        quiet_libraries()
        if args.compare:
            return _compared(request, host, path, encoding)
        if together:
            settled = _seeded(settled)
        state = run(settled, host, path=path, encoding=encoding)
    if state.media is None:
        raise LTXError("the run ended without a file")
    if console.is_terminal:
        told = (f"seed {state.seed}", timings_text(state), memory_text(state.timings))
        console.print("; ".join(filter(None, told)), highlight=False)
    if args.json:
        timings = {t.phase: round(t.seconds, 3) for t in state.timings}
        print_json({**state.media.to_json(), "seed": state.seed, "timings": timings, "plan": state.plan.to_json()})
        return
    print(state.media.path)


def _compared(request: Any, host: Any, path: Path | None, encoding: Any) -> None:
    """The job twice, off and on, and both side by side; the path of that is the last line of stdout."""
    from modules.ltx.compare import both, compare

    plans = both(request, host)
    target = path or host.output_path(plans[1])
    compare(plans, host, path=target, encoding=encoding)
    print(target)


def _target(output: str | None) -> Path | None:
    if output is None:
        return None
    path = Path(output)
    if path.suffix.lower() != ".mp4" or path.is_dir():
        raise RequestError(f"-o {output}: not an mp4 file name; give a name that ends in .mp4.")
    return path


def serve(args: argparse.Namespace) -> None:
    """The web app, until Ctrl-C."""
    from modules.ltx.serve import Listening
    from modules.ltx.serve import serve as run_app

    loras = None if args.loras is None else Path(args.loras)
    at = Listening(args.host, args.port, tuple(args.proxy or ()), _token(args.token_file), loras)
    run_app(
        lambda on_event: _host(args, on_event=on_event),
        Path(args.outputs),
        at,
        prepare=quiet_libraries,
        as_json=args.json,
    )


def queue(args: argparse.Namespace) -> None:
    """Jobs that are kept: `queue VERB`, `draft` and `finish`."""
    from modules.ltx.cli_queue import Here

    here = Here(args, _host, quiet_libraries)
    {"queue": here.queue, "draft": here.draft, "finish": here.finish}[args.command]()


def _token(file: str | None) -> str | None:
    """The server's token, from a file or the environment: a command line is seen by others."""
    if file is None:
        return os.environ.get("LTX_TOKEN") or None
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise RequestError(f"--token-file {file}: cannot be read; give a text file with the token in it.") from error


if __name__ == "__main__":
    sys.exit(main())
