"""The user's LoRAs: a strength for each stage, from the command line to the adapters."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from modules.ltx import stages
from modules.ltx.cli import _lora
from modules.ltx.errors import RequestError
from modules.ltx.hosts import nano
from modules.ltx.hosts.embedded import EmbeddedHost
from modules.ltx.plan import Plan
from modules.ltx.request import Lora, Request
from modules.ltx.state import State

pytestmark = pytest.mark.library

Planned = Callable[..., Plan]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.safetensors", {"source": "a.safetensors"}),
        ("a.safetensors:0.5", {"source": "a.safetensors", "strength": "0.5"}),
        ("a.safetensors:0.5:0", {"source": "a.safetensors", "strength": "0.5", "stage2": "0"}),
        ("C:\\x.safetensors", {"source": "C:\\x.safetensors"}),
        ("C:\\x.safetensors:-1:2", {"source": "C:\\x.safetensors", "strength": "-1", "stage2": "2"}),
        ("user/repo:1e-1", {"source": "user/repo", "strength": "1e-1"}),
        ("a:1:2:3", {"source": "a:1", "strength": "2", "stage2": "3"}),
    ],
)
def test_how_it_is_written(text: str, said: dict[str, str]) -> None:
    assert _lora(text) == said


def test_it_is_read_back_as_it_was() -> None:
    asked = Request.parse({"loras": [{"source": "a", "strength": 0.5, "stage2": 0}, {"source": "b"}]})
    assert asked.loras == (Lora("a", 0.5, 0.0), Lora("b"))
    assert Request.parse(asked.to_json()) == asked
    with pytest.raises(RequestError, match="from -4 to 4"):
        Request.parse({"loras": [{"source": "a", "stage2": 9}]})


@pytest.mark.parametrize(
    ("strength", "stage2", "seen"),
    [(0.5, None, [{0.5}, {0.5}]), (0.5, 2.0, [{0.5}, {2.0}]), (0.0, 1.0, [set(), {1.0}])],
)
def test_each_stage_runs_with_its_own_strength(
    host: EmbeddedHost, planned: Planned, strength: float, stage2: float | None, seen: list[set[float]]
) -> None:
    lora = {"source": str(nano.ensure("2.3-lora", host.settings.cache_folder)), "strength": strength, "stage2": stage2}
    made = planned("nano-2.3-distilled-t2v", refine=True, width=128, height=128, loras=[lora])
    with host.pipeline(made.caps, made.caps.pipeline) as pipe:
        transformer = pipe.transformer
    found: list[set[float]] = []

    def look(module: object, *_: object) -> None:
        layers = [part for part in transformer.modules() if hasattr(part, "scaling")]
        found.append({round(float(value), 4) for layer in layers for value in layer.scaling.values()})

    handle = transformer.register_forward_pre_hook(look)
    state = State(made, seed=1)
    for _, stage in stages.ordered(made):
        state = stage(state, host)
    handle.remove()
    first, second = made.stages[0].evaluations, made.stages[-1].evaluations
    assert found == [seen[0]] * first + [seen[1]] * second
