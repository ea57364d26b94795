"""The table of variants: every row of the recipes, and the one way to find a row."""

from __future__ import annotations

import pytest

from modules.ltx.errors import RequestError
from modules.ltx.ltx_capabilities import CONSERVATIVE, Caps, Facts, all_caps, as_variant, caps_for, effective

pytestmark = pytest.mark.library

T2V, I2V, CONDITION = "LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline"
CLASSES = {"T2V": T2V, "I2V": I2V, "Condition": CONDITION}
C09 = "LTXConditionPipeline"

# (label, repo, class), written out here independently of the code that derives them.
EXPECTED = {
    **{
        f"LTXVideo 2.3-1.1 22B {m} Distilled{s}": (f"OzzyGT/LTX-2.3-Distilled-1.1{r}", CLASSES[m])
        for m in ("T2V", "I2V")
        for s, r in (("", ""), (" SDNQ-4Bit", "-sdnq-dynamic-int4"))
    },
    **{
        f"LTXVideo 2.3 22B {m}{k}{s}": (f"OzzyGT/LTX-2.3{q}{r}", CLASSES[m])
        for m in CLASSES
        for k, q in (("", ""), (" Distilled", "-Distilled"))
        for s, r in (("", ""), (" SDNQ-4Bit", "-sdnq-dynamic-int4"))
    },
    **{f"LTXVideo 2.0 19B {m} Dev": ("Lightricks/LTX-2", CLASSES[m]) for m in ("T2V", "I2V")},
    **{f"LTXVideo 2.0 19B {m} Dev SDNQ-4Bit": ("Disty0/LTX-2-SDNQ-4bit-dynamic", CLASSES[m]) for m in ("T2V", "I2V")},
    "LTXVideo 0.9.8 13B Distilled": ("Lightricks/LTX-Video-0.9.8-13B-distilled", C09),
    "LTXVideo 0.9.7 13B Dev": ("a-r-r-o-w/LTX-Video-0.9.7-diffusers", C09),
    **{f"LTXVideo 0.9.6 2B {m}": ("Lightricks/LTX-Video", C09) for m in ("T2V", "I2V")},
    **{
        f"LTXVideo 0.9.6 2B {m} Distilled": ("Lightricks/LTX-Video-2B-0.9.6-Distilled-04-25", C09)
        for m in ("T2V", "I2V")
    },
    **{f"LTXVideo 0.9.5 {m}": ("Lightricks/LTX-Video-0.9.5", C09) for m in ("T2V", "I2V")},
    "LTXVideo 0.9.1 T2V": ("a-r-r-o-w/LTX-Video-0.9.1-diffusers", "LTXPipeline"),
    "LTXVideo 0.9.1 I2V": ("a-r-r-o-w/LTX-Video-0.9.1-diffusers", "LTXImageToVideoPipeline"),
    "LTXVideo 0.9.0 T2V": ("a-r-r-o-w/LTX-Video-diffusers", "LTXPipeline"),
    "LTXVideo 0.9.0 I2V": ("a-r-r-o-w/LTX-Video-diffusers", "LTXImageToVideoPipeline"),
    **{
        f"LTXVideo 2.5 22B {m}{k}": ("Lightricks/LTX-2.5-Diffusers", CLASSES[m])
        for m in CLASSES
        for k in ("", " Distilled")
    },
}


def row(name: str) -> Caps:
    return caps_for(name)[0]


def test_every_variant_is_listed_and_no_other() -> None:
    listed = {c.label: (c.source, c.pipeline) for c in all_caps() if not c.source.startswith("nano:")}
    assert listed == EXPECTED


def test_ids_and_labels_are_unique() -> None:
    names = [c.id for c in all_caps()] + [c.label for c in all_caps()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("caps", all_caps(), ids=lambda c: c.id)
def test_a_row_is_found_by_its_label_and_its_id(caps: Caps) -> None:
    assert row(caps.label) == caps
    assert row(caps.id) == caps


@pytest.mark.parametrize("caps", all_caps(), ids=lambda c: c.id)
def test_rules_that_hold_for_every_row(caps: Caps) -> None:
    two = caps.family == "2.x"
    assert caps.supports_audio == caps.supports_stg == caps.supports_frame_rate_kwarg == two
    assert caps.is_distilled == ("Distilled" in caps.label)
    assert caps.is_i2v == (" I2V" in caps.label)
    assert caps.supports_multi_condition == caps.pipeline.endswith("ConditionPipeline")
    assert caps.supports_image_cond_noise_scale == (caps.pipeline == C09)
    assert caps.forced_no_dynamic_shift == (not two)
    assert caps.default_dynamic_shift == caps.supports_dynamic_shift == (two and not caps.is_distilled)
    assert caps.use_cross_timestep == (two and caps.generation != "2.0")
    assert (caps.default_cfg, caps.default_steps > 8) == ((1.0, False) if caps.is_distilled else (3.0, True))
    assert caps.guidance.guidance_scale == caps.default_cfg
    assert bool(caps.stage2_dev_lora_repo) == (two and not caps.is_distilled)
    assert caps.audio_from == ("stage2" if caps.is_distilled else "stage1")
    assert caps.supports_upsample == bool(caps.upsampler)
    assert all(block < caps.num_blocks for block in caps.stg_default_blocks)
    assert (caps.quantization == "sdnq-int4") == caps.label.endswith("SDNQ-4Bit")
    assert caps.max_sequence_length == 1024 or not two or caps.source.startswith("nano:")


@pytest.mark.parametrize(
    ("name", "blocks", "cross", "lora"),
    [
        ("2.0-dev-t2v", (29,), False, "CalamitousFelicitousness/LTX-2.0-distilled-lora-384-Diffusers"),
        ("2.3-dev-t2v", (28,), True, "CalamitousFelicitousness/LTX-2.3-distilled-lora-384-Diffusers"),
        ("2.5-dev-t2v", (28,), True, "Lightricks/LTX-2.5"),
    ],
)
def test_what_differs_between_generations(name: str, blocks: tuple[int, ...], cross: bool, lora: str) -> None:
    caps = row(name)
    assert (caps.stg_default_blocks, caps.use_cross_timestep, caps.stage2_dev_lora_repo) == (
        blocks,
        cross,
        lora,
    )
    assert caps.image_crf == (18 if caps.generation == "2.5" else 33)


def test_upsamplers_belong_to_a_generation() -> None:
    assert row("2.0-dev-t2v").upsampler == "Lightricks/LTX-2"
    assert row("2.3-dev-t2v").upsampler == row("2.3-distilled-i2v").upsampler
    assert row("2.3-dev-t2v").upsampler != row("2.0-dev-t2v").upsampler
    assert row("0.9.8-distilled").upsampler == row("0.9.7-dev").upsampler
    assert row("0.9.5-t2v").upsampler is None


def test_a_repo_is_found_exactly_and_says_which_of_its_rows_it_took() -> None:
    caps, notes = caps_for("OzzyGT/LTX-2.3", mode="I2V")
    assert caps.label == "LTXVideo 2.3 22B I2V"
    assert "LTXVideo 2.3 22B I2V" in notes[0]


def test_never_by_a_substring() -> None:
    for name in ("LTXVideo 2.3", "2.3", "Distilled", "ltxvideo 2.3 22b t2v", "OzzyGT/LTX-2"):
        with pytest.raises(RequestError, match="no such"):
            caps_for(name)


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(RequestError, match="LTXVideo 2.3 22B T2V;"):
        caps_for("LTXVideo 2.3 T2V")


def test_nano_is_the_default_by_what_the_request_needs() -> None:
    assert [caps_for("nano", mode=m)[0].mode for m in CLASSES] == list(CLASSES)


def test_a_folder_is_read_by_its_own_config() -> None:
    is_23 = {
        "cross_attn_mod": True,
        "gated_attn": True,
        "perturbed_attn": True,
        "use_prompt_embeddings": False,
    }
    caps, notes = caps_for("/m", probe=lambda _: Facts(I2V, is_23 | {"num_layers": 12}))
    assert (caps.generation, caps.mode, caps.num_blocks, caps.is_distilled) == ("2.3", "I2V", 12, False)
    assert "does not say whether it is distilled" in notes[0]
    caps, _ = caps_for("/m", probe=lambda _: Facts(T2V, {"num_layers": 48}))
    assert caps.generation == "2.0"


@pytest.mark.parametrize("pipeline", list(CONSERVATIVE))
def test_an_unknown_mirror_gets_the_careful_row_of_its_class(pipeline: str) -> None:
    caps, notes = caps_for("some/mirror", probe=lambda _: Facts(pipeline))
    assert caps.pipeline == pipeline
    assert "careful defaults" in notes[0]
    assert not caps.is_distilled


def test_a_folder_of_another_engine_is_refused() -> None:
    with pytest.raises(RequestError, match="WanPipeline.*LTX classes are"):
        caps_for("/m", probe=lambda _: Facts("WanPipeline"))


def test_a_named_variant_keeps_its_own_transformer() -> None:
    """2.5's Dev and Distilled share a repo: naming the repo with --variant must not swap their weights."""
    dev = row("2.5-dev-t2v")
    assert as_variant(dev, dev.source) == dev
    assert as_variant(dev, "/copy").transformer == "transformer_full"


def test_effective_gives_the_reasons() -> None:
    caps = effective(row("2.5-dev-t2v"), {"generation 2.5": "needs diffusers >= 0.42"})
    assert caps.unavailable == ("needs diffusers >= 0.42",)
    assert effective(row("2.3-dev-t2v"), {"generation 2.5": "x"}).unavailable == ()
