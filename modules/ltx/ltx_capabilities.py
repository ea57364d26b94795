"""What each variant can do: the one look-up that finds a variant's row.

In one order: the exact label or id, the exact repo, the model folder's own config with its registered
class, else the conservative row of that class, with a note. Never by a substring. Everybody else asks
a row for a capability, never for a family.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from modules.ltx.capability_rows import IDENTITY, Caps, Guidance, parents, row_of
from modules.ltx.errors import RequestError
from modules.video_models.ltx_models import (
    CONDITION,
    CONDITION_09,
    I2V,
    I2V_09,
    MODE_OF_CLASS,
    MODELS,
    NANO_DEFAULT,
    T2V,
    T2V_09,
    Model,
)

__all__ = [
    "CONSERVATIVE",
    "IDENTITY",
    "Caps",
    "Facts",
    "Guidance",
    "all_caps",
    "as_variant",
    "caps_for",
    "effective",
]


@dataclass(frozen=True)
class Facts:
    """What a model folder says about itself: model_index.json, the transformer's and the VAE's config.json."""

    pipeline: str
    transformer: Mapping[str, object] = field(default_factory=dict)
    vae: Mapping[str, object] = field(default_factory=dict)


Probe = Callable[[str], Facts | None]


# The most careful row of a class: used for a repo nobody registered, always with a note.
CONSERVATIVE = {
    T2V: "2.0-dev",
    I2V: "2.0-dev",
    CONDITION: "2.0-dev",
    T2V_09: "0.9.0-dev",
    I2V_09: "0.9.0-dev",
    CONDITION_09: "0.9.5-dev",
}


@cache
def all_caps() -> tuple[Caps, ...]:
    """Every variant, in the order of the catalogue."""
    return tuple(row_of(model) for model in MODELS)


def caps_for(name: str, *, mode: str = "T2V", probe: Probe | None = None) -> tuple[Caps, tuple[str, ...]]:
    """The row of a variant by label, id, repo or folder, and notes on how it was found.

    `mode` picks among the rows of one repo (T2V, I2V, Condition) and for `nano`. `probe` reads a
    folder's or a cached repo's own config. Raises RequestError with the nearest names.
    """
    rows = all_caps()
    if name == "nano":
        row = next(c for c in rows if c.id == NANO_DEFAULT[mode])
        return row, (f"nano is {row.label}",)
    exact = [c for c in rows if name in (c.label, c.id)]
    if exact:
        return exact[0], ()
    by_repo = [c for c in rows if c.source == name]
    if by_repo:
        row = next((c for c in by_repo if c.mode == mode), by_repo[0])
        return row, (f"{name} is {row.label}; name a label to choose another of its variants",)
    facts = probe(name) if probe is not None else None
    if facts is None:
        raise RequestError(_unknown(name))
    return caps_from_facts(name, facts)


def caps_from_facts(source: str, facts: Facts) -> tuple[Caps, tuple[str, ...]]:
    """The row of an unregistered folder or repo, from its own config and its pipeline class."""
    if facts.pipeline not in CONSERVATIVE:
        allowed = ", ".join(CONSERVATIVE)
        raise RequestError(
            f"{source}: its pipeline class is {facts.pipeline or 'missing'}; LTX classes are: {allowed}."
        )
    base = _base_of(facts)
    found = "by its own config" if base else "by its class alone, so with careful defaults"
    mode = MODE_OF_CLASS[facts.pipeline]
    model = Model(source, source, source, facts.pipeline, base or CONSERVATIVE[facts.pipeline], mode)
    blocks = facts.transformer.get("num_layers")
    row = row_of(model)
    row = replace(row, num_blocks=blocks) if isinstance(blocks, int) else row
    row = with_vae(row, facts.vae)
    note = (
        f"{source}: taken as {row.generation} {mode}, {found}; a folder does not say whether it is distilled,"
        " so it is run as Dev unless --variant names the variant"
    )
    return row, (note,)


def with_vae(row: Caps, vae: Mapping[str, object]) -> Caps:
    """A 0.9 row with what the VAE's own config says: whether it decodes from a noise level it is told."""
    conditioned = vae.get("timestep_conditioning")
    if row.family != "0.9" or not isinstance(conditioned, bool):
        return row
    level = parents()["0.9.1-dev"]  # the first with such a VAE
    timestep, noise = (level.decode_timestep, level.decode_noise_scale) if conditioned else (0.0, 0.0)
    return replace(row, supports_decode_timestep=conditioned, decode_timestep=timestep, decode_noise_scale=noise)


def as_variant(row: Caps, source: str) -> Caps:
    """`row` with its weights read from another folder or repo (a local copy of a known variant)."""
    return replace(row, source=source)


def _base_of(facts: Facts) -> str | None:
    """The parent row that a 2.x transformer's config states; 0.9 configs do not tell their versions apart."""
    config = facts.transformer
    if facts.pipeline not in (T2V, I2V, CONDITION) or not config:
        return None
    is_23 = all(config.get(k) is True for k in ("cross_attn_mod", "gated_attn", "perturbed_attn"))
    if is_23 and config.get("use_prompt_embeddings") is False:
        return "2.3-dev"
    return "2.0-dev"


def _unknown(name: str) -> str:
    rows = all_caps()
    names = [c.label for c in rows] + [c.id for c in rows] + ["nano"]
    lowered = {n.lower(): n for n in names}
    near = [lowered[n] for n in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.4)]
    hint = "nearest are: " + "; ".join(near) if near else "`nano` is the embedded one"
    return f"model {name[:200]!r}: no such id, label, folder or repo; {hint}. `models` lists them all."


def effective(caps: Caps, lacks: Mapping[str, str]) -> Caps:
    """`caps` with the reasons why this machine cannot run it.

    `lacks` maps what a host found missing (a diffusers class, a package, or a quantization) to the
    sentence shown to the user, as {"LTX2ConditionPipeline": "needs diffusers >= 0.42"}; "lora" to why none works,
    "compile" to why no transformer can be compiled, "fast decoder" to what the diffusion decoder's kernel needs.
    """
    needed = (caps.pipeline, caps.stage2_pipeline, caps.quantization, f"generation {caps.generation}")
    reasons = tuple(dict.fromkeys(lacks[n] for n in needed if n in lacks))
    slow = lacks.get("fast decoder", "") if caps.supports_diffusion_decoder else ""
    return replace(
        caps,
        unavailable=reasons,
        lora_why_not=lacks.get("lora", ""),
        slow_decoder=slow,
        compile_why_not=lacks.get("compile", ""),
    )
