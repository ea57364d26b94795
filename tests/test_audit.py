"""The audit of the pins against a server on this machine that answers as OSV does, and against none."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.audit import PINS, main, pinned

Capture = pytest.CaptureFixture[str]


class Answers(http.server.BaseHTTPRequestHandler):
    """Knows of one vulnerability, in `old` 1.0."""

    def do_POST(self) -> None:
        asked: Any = json.loads(self.rfile.read(int(self.headers["content-length"])))
        bad = {"package": {"name": "old", "ecosystem": "PyPI"}, "version": "1.0"}
        told: Any = [{"vulns": [{"id": "PYSEC-1"}]} if one == bad else {} for one in asked["queries"]]
        body = {"/": json.dumps({"results": told}), "/few": '{"results": []}', "/odd": "<html>"}[self.path]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *told: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    file = tmp_path / "constraints.txt"
    file.write_text('# pins\n\nold==1.0 ; python_version < "3.11"\nold==2.0 ; python_version >= "3.11"\nfine==3\n')
    return file


def test_what_is_known_is_told_and_only_strictly_a_failure(server: str, pins: Path, capsys: Capture) -> None:
    assert main([], f"{server}/", pins) == 0
    assert capsys.readouterr().out.splitlines() == [
        "audit: old 1.0: PYSEC-1; see https://osv.dev/vulnerability/PYSEC-1",
        "audit: of 3 pins, 1 have known vulnerabilities",
    ]
    assert main(["--strict"], f"{server}/", pins) == 1
    pins.write_text("fine==3\n")
    assert main(["--strict"], f"{server}/", pins) == 0


@pytest.mark.parametrize("path", ["/few", "/odd", None])
def test_without_an_answer_one_line_says_so(server: str, pins: Path, capsys: Capture, path: str | None) -> None:
    address = "http://127.0.0.1:9/" if path is None else server + path  # the port of `discard`: nobody listens
    assert main([], address, pins) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("audit: not made, OSV could not be asked (")
    assert main(["--strict"], address, pins) == 1


def test_every_pin_is_asked_for() -> None:
    lines = [line for line in PINS.read_text().splitlines() if "==" in line and not line.startswith("#")]
    assert [f"{name}=={version}" for name, version in pinned(PINS)] == [line.split(" ")[0] for line in lines]
