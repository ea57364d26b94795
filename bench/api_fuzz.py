"""Asks the API for what nobody would ask: calls generated from its document, and bodies generated for `POST jobs`.

    python -m bench.api_fuzz [CALLS] [BODIES] [--seed N]

No call may be answered with 5xx or otherwise than the document says; every body is answered with 202 or a typed 4xx,
for which nothing is written, and the command line says the same of it. Prints what was found as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from modules.ltx.__main__ import main as command_line
from modules.ltx.guard import Trust
from modules.ltx.hosts.embedded import EmbeddedHost, Settings
from modules.ltx.jobs import FOLDER
from modules.ltx.jobs_base import FolderLock
from modules.ltx.ltx_api import PREFIX
from modules.ltx.ltx_capabilities import all_caps
from modules.ltx.ltx_problems import Rate
from modules.ltx.request import OPTIONS, Option
from modules.ltx.serve import App, listen
from modules.ltx.serve_jobs import Jobs

CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"),
    "response_headers_conformance",
)
_QUIET: Any = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@contextmanager
def serving(outputs: Path) -> Iterator[str]:
    """The address of the embedded app over a queue on which nobody works: its lock is held here."""
    lock = FolderLock(outputs / FOLDER / "worker.lock")
    assert lock.take()
    jobs = Jobs(lambda heard: EmbeddedHost(Settings(outputs, device="cpu", offline=True), heard), outputs, most=10**6)
    app = App(jobs, outputs, outputs, Trust(), rate=Rate(10**9, 10**9))
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app.asgi, log_config=None, access_log=False, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)
    jobs.close()
    jobs.wait()
    lock.give_back()


def conform(address: str, calls: int, seed: int) -> dict[str, Any]:
    """`calls` calls made from the document, each checked against it. Raises what a check raises."""
    import schemathesis
    from schemathesis import checks

    checks.load_all_checks()
    wanted = checks.CHECKS.get_by_names(list(CHECKS))
    schema: Any = schemathesis.openapi.from_url(f"{address}{PREFIX}/openapi.json")
    found: Counter[int] = Counter()
    operations = [one.ok() for one in schema.get_all_operations()]
    each = max(calls // len(operations), 1)
    for number, operation in enumerate(chain.from_iterable(repeat(operations))):
        if sum(found.values()) >= calls and number >= len(operations):
            break

        @seeded(seed + number)
        @settings(max_examples=each, phases=[Phase.generate], **_QUIET)
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            answer = case.call(base_url=address, timeout=30)
            found[answer.status_code] += 1
            case.validate_response(answer, checks=wanted)

        ask()
    return {"calls": sum(found.values()), "statuses": dict(sorted(found.items()))}


def _value(option: Option) -> st.SearchStrategy[Any]:
    """Values of an option: right ones, ones just outside, and ones of another kind."""
    odd: st.SearchStrategy[Any] = st.sampled_from(["", "x", "1e3", "-1", " 7 ", "NaN", True, 10**30, -1, 0.5])
    if option.choices:
        return st.one_of(st.sampled_from(option.choices), odd)
    if option.kind in ("int", "float"):
        low, high = option.low or 0, option.high or 0
        right = st.integers(int(low), int(high)) if option.kind == "int" else st.floats(low, high)
        return st.one_of(right, st.sampled_from([low, high, low - 1, high + 1]), odd)
    if option.kind == "bool":
        return st.booleans()
    return st.one_of(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), odd)


def bodies() -> st.SearchStrategy[dict[str, Any]]:
    """Requests as JSON values: a model of the catalogue or none, and some options."""
    values = {option.name: _value(option) for option in OPTIONS if option.name not in ("model", "variant")}
    some = st.lists(st.sampled_from(sorted(values)), unique=True, max_size=8)
    small = some.flatmap(lambda names: st.fixed_dictionaries({name: values[name] for name in names}))
    model = st.sampled_from([*(caps.id for caps in all_caps()), "nano"])
    return st.builds(lambda body, name: {**body, "model": name}, small, model)


def argv(body: Mapping[str, Any]) -> list[str] | None:
    """The same on the command line; None where it cannot be said there."""
    words = []
    flags = {option.name: option for option in OPTIONS}
    for name, value in body.items():
        if flags[name].kind == "bool":
            if name == "audio":
                words += [] if value else ["--no-audio"]
            elif name == "dynamic_shift":
                words.append("--dynamic-shift" if value else "--no-dynamic-shift")
            elif value:
                words.append(flags[name].flag)
        elif isinstance(value, bool) or (flags[name].kind not in ("int", "float") and not isinstance(value, str)):
            return None  # there all is text, which JSON tells from numbers
        else:
            words.append(f"{flags[name].flag}={value}")
    return words


def verdict(body: Mapping[str, Any]) -> int | None:
    """The exit code of `plan` for the same request."""
    words = argv(body)
    if words is None:
        return None
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return command_line(["plan", "--json", "--device", "cpu", "--offline", *words])


def fuzz(address: str, outputs: Path, bodies_: int, seed: int, *, every: int = 1) -> dict[str, Any]:
    """`bodies_` bodies to `POST jobs`, each `every`th on the command line too. Raises AssertionError for the first that
    is answered wrongly."""
    found: Counter[str] = Counter()
    number = count()
    with httpx.Client(base_url=address + PREFIX, timeout=30) as http:
        waiting = http.get("/queue").json()["counts"]["queued"]

        @seeded(seed)
        @settings(max_examples=bodies_, phases=[Phase.generate], **_QUIET)
        @given(body=bodies())
        def ask(body: dict[str, Any]) -> None:
            nonlocal waiting
            answer = http.post("/jobs", json=body)
            found[str(answer.status_code)] += 1
            assert answer.status_code in (202, 422), (body, answer.text)
            if answer.status_code == 422:
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["type"] == "urn:ltx:problem:request"
            waiting += answer.status_code == 202
            assert http.get("/queue").json()["counts"]["queued"] == waiting, body
            said = verdict(body) if next(number) % every == 0 else None
            found["verdicts"] += said is not None
            assert said is None or (said == 0) == (answer.status_code == 202), (body, said, answer.text)

        ask()
    assert [path.name for path in outputs.iterdir()] == [FOLDER]
    return {"bodies": found["202"] + found["422"], **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calls", type=int, nargs="?", default=2000)
    parser.add_argument("bodies", type=int, nargs="?", default=5000)
    parser.add_argument("--seed", type=int, default=0)
    given_ = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder) / "outputs"
        with serving(outputs) as address:
            found = {"fuzz": fuzz(address, outputs, given_.bodies, given_.seed)}
            found["conform"] = conform(address, given_.calls, given_.seed)
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
