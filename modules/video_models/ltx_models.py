"""The catalogue: every LTX variant this project lists, as plain rows. No torch, no behaviour.

Labels are the host's own (SD.Next `modules/video_models/models_def.py`), so that one look-up serves
both. `base` names the parent row of `ltx_capabilities.py`; what a variant can do is decided there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

T2V, I2V, CONDITION = "LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline"
T2V_09, I2V_09, CONDITION_09 = "LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"
MODE_OF_CLASS = {T2V: "T2V", I2V: "I2V", CONDITION: "Condition"} | {
    T2V_09: "T2V",
    I2V_09: "I2V",
    CONDITION_09: "Condition",
}


@dataclass(frozen=True)
class Model:
    """One row: where a variant's weights are and which pipeline class runs them."""

    id: str
    label: str
    repo: str  # hub repo, or nano:NAME for the models this project builds itself
    pipeline: str  # diffusers class name
    base: str  # parent row in ltx_capabilities
    mode: str  # T2V, I2V or Condition: what the label promises (a Condition class may serve all three)
    quantization: str = "none"
    transformer: str = "transformer"  # subfolder of the transformer inside the repo
    vae_dtype: str | None = None  # a dtype the VAE must keep, whatever the rest runs in


def _modes(model: Model, classes: dict[str, str]) -> list[Model]:
    """One row per mode of a repo; {mode} in id and label is filled in."""
    return [
        replace(
            model,
            id=model.id.format(mode=mode.lower()),
            label=model.label.format(mode=mode),
            pipeline=pipeline,
            mode=mode,
        )
        for mode, pipeline in classes.items()
    ]


def _with_sdnq(models: list[Model], repo: str) -> list[Model]:
    """The rows and their pre-quantized 4-bit twins (https://github.com/Disty0/sdnq)."""
    twins = [
        replace(m, id=f"{m.id}-sdnq", label=f"{m.label} SDNQ-4Bit", repo=repo, quantization="sdnq-int4") for m in models
    ]
    return models + twins


_TWO = {"T2V": T2V, "I2V": I2V}
_THREE = {"T2V": T2V, "I2V": I2V, "Condition": CONDITION}


def _row(id: str, label: str, repo: str, base: str, **more: str) -> Model:
    return Model(id=id, label=label, repo=repo, pipeline="", base=base, mode="", **more)


def _ltx2() -> list[Model]:
    v11 = _row(
        "2.3-1.1-distilled-{mode}",
        "LTXVideo 2.3-1.1 22B {mode} Distilled",
        "OzzyGT/LTX-2.3-Distilled-1.1",
        "2.3-distilled",
    )
    dev = _row("2.3-dev-{mode}", "LTXVideo 2.3 22B {mode}", "OzzyGT/LTX-2.3", "2.3-dev")
    distilled = _row(
        "2.3-distilled-{mode}",
        "LTXVideo 2.3 22B {mode} Distilled",
        "OzzyGT/LTX-2.3-Distilled",
        "2.3-distilled",
    )
    v20 = _row("2.0-dev-{mode}", "LTXVideo 2.0 19B {mode} Dev", "Lightricks/LTX-2", "2.0-dev")
    return [
        *_with_sdnq(_modes(v11, _TWO), "OzzyGT/LTX-2.3-Distilled-1.1-sdnq-dynamic-int4"),
        *_with_sdnq(_modes(dev, _THREE), "OzzyGT/LTX-2.3-sdnq-dynamic-int4"),
        *_with_sdnq(_modes(distilled, _THREE), "OzzyGT/LTX-2.3-Distilled-sdnq-dynamic-int4"),
        *_with_sdnq(_modes(v20, _TWO), "Disty0/LTX-2-SDNQ-4bit-dynamic"),
    ]


def _ltx25() -> list[Model]:
    # One gated repo holds both: `transformer` is the distilled model, `transformer_full` is Dev.
    repo = "Lightricks/LTX-2.5-Diffusers"
    dev = _row("2.5-dev-{mode}", "LTXVideo 2.5 22B {mode}", repo, "2.5-dev", transformer="transformer_full")
    distilled = _row("2.5-distilled-{mode}", "LTXVideo 2.5 22B {mode} Distilled", repo, "2.5-distilled")
    return _modes(distilled, _THREE) + _modes(dev, _THREE)


def _ltx09() -> list[Model]:
    condition_both = {"T2V": CONDITION_09, "I2V": CONDITION_09}
    plain = {"T2V": T2V_09, "I2V": I2V_09}
    v98 = _row(
        "0.9.8-distilled",
        "LTXVideo 0.9.8 13B Distilled",
        "Lightricks/LTX-Video-0.9.8-13B-distilled",
        "0.9.8-distilled",
    )
    v97 = _row("0.9.7-dev", "LTXVideo 0.9.7 13B Dev", "a-r-r-o-w/LTX-Video-0.9.7-diffusers", "0.9.7-dev")
    v96 = _row("0.9.6-{mode}", "LTXVideo 0.9.6 2B {mode}", "Lightricks/LTX-Video", "0.9.6-dev")
    v96d = _row(
        "0.9.6-distilled-{mode}",
        "LTXVideo 0.9.6 2B {mode} Distilled",
        "Lightricks/LTX-Video-2B-0.9.6-Distilled-04-25",
        "0.9.6-distilled",
    )
    v95 = _row("0.9.5-{mode}", "LTXVideo 0.9.5 {mode}", "Lightricks/LTX-Video-0.9.5", "0.9.5-dev")
    v91 = _row("0.9.1-{mode}", "LTXVideo 0.9.1 {mode}", "a-r-r-o-w/LTX-Video-0.9.1-diffusers", "0.9.1-dev")
    v90 = _row("0.9.0-{mode}", "LTXVideo 0.9.0 {mode}", "a-r-r-o-w/LTX-Video-diffusers", "0.9.0-dev")
    # 0.9.5 image conditions drift in bf16: its VAE is kept in float32 where images are given.
    rows95 = [replace(m, vae_dtype="float32") if m.mode == "I2V" else m for m in _modes(v95, condition_both)]
    return [
        *_modes(v98, {"Condition": CONDITION_09}),
        *_modes(v97, {"Condition": CONDITION_09}),
        *_modes(v96, condition_both),
        *_modes(v96d, condition_both),
        *rows95,
        *_modes(v91, plain),
        *_modes(v90, plain),
    ]


def _nano() -> list[Model]:
    rows: list[Model] = []
    for generation, kinds in {"2.3": ("distilled", "dev"), "2.0": ("distilled", "dev")}.items():
        for kind in kinds:
            name = f"{generation}-{kind}"
            label = f"LTX-Nano {generation} {{mode}} {kind.capitalize()}"
            rows += _modes(_row(f"nano-{name}-{{mode}}", label, f"nano:{name}", f"nano-{name}"), _THREE)
    nano09 = _row("nano-0.9-{mode}", "LTX-Nano 0.9 {mode}", "nano:0.9", "nano-0.9")
    return rows + _modes(nano09, {"T2V": T2V_09, "I2V": I2V_09, "Condition": CONDITION_09})


MODELS: tuple[Model, ...] = (*_ltx25(), *_ltx2(), *_ltx09(), *_nano())

# Sources with random weights, which show noise: they are there for tests. LTX-Nano 2.3 is trained.
RANDOM = ("nano:2.0", "nano:0.9")

# What `--model nano` means: the embedded default, by what the request brings along.
NANO_DEFAULT = {mode: f"nano-2.3-distilled-{mode.lower()}" for mode in _THREE}
