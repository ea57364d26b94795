"""What LTX-Nano reads prompts with: a tiny Gemma 3 (2.x), a tiny T5 (0.9) and their tokenizers.

Knows the words of the little world the tests speak about, and how the two tokenizer families spell.
Any other text is harmless: Gemma's tokenizer leaves out what is not of that world, T5's falls back to characters and
`<unk>`.
Does not know pipelines, folders or what the embeddings are used for; the weights are random.

torch, transformers and tokenizers are imported inside the functions: importing this costs nothing.
"""

from __future__ import annotations

import string
from typing import Any

_LOOKS = (
    *("small", "big", "little", "large"),
    *("red", "green", "blue", "yellow", "magenta", "cyan", "black", "white", "gray", "grey"),
    *("ball", "circle", "square", "triangle"),
)
_MOTIONS = ("moving", "left", "right", "up", "down", "bouncing", "still")
WORDS = (
    *("a", "an", "the", "and", "with", "on", "at", "of", "in", "to", "is"),
    *_LOOKS,
    *_MOTIONS,
    *("background", "silent", "video"),
)

_KNOWN = "|".join((*_LOOKS, *_MOTIONS, "background", "silent", "a", "the", "on", "to"))
# A prompt as the trained model is to read it, in small letters, pattern by pattern: without what no training prompt
# ever said. LTX-Nano was told of its world alone; a word of another, spelled letter by letter, would drown what it
# knows. What links words goes where it links nothing that is left: "at the edge of a red ball" is "a red ball".
READING: tuple[tuple[str, str], ...] = (
    (rf"\b(?!(?:{_KNOWN})\b)\w+", ""),
    (r"[^\w,]+", " "),
    (rf"\b(?:a|the) (?!(?:{'|'.join((*_LOOKS, *_MOTIONS))})\b)", ""),
    (rf"\bto (?!(?:the )?(?:{'|'.join(_MOTIONS)})\b)", ""),
    (rf"\bon (?!(?:a |the )?(?:{'|'.join(_LOOKS)})\b)", ""),
    (r" *,[, ]*", ", "),
    (r"^[, ]+|(?:[, ]|\b(?:a|the|to|on)$)+$", ""),
)

# The length prompts are padded to. Real folders say 1024 (Gemma) and 128 (T5); 128 is the shortest that
# still divides by the connectors' 128 registers.
MAX_TOKENS = 64

# "▁" (U+2581) stands for a space in both families' vocabularies.
_SPACE = "▁"
_CHARACTERS = string.ascii_letters + string.digits + string.punctuation

# The order is Gemma's own: pad 0, eos 1, bos 2, unk 3, mask 4. The image tokens let a processor or the
# prompt enhancer address the vision tower without ids outside the vocabulary.
_GEMMA_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
_GEMMA_IMAGE = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")

GEMMA_HIDDEN = 64
GEMMA_LAYERS = 3
T5_HIDDEN = 64

# head_dim and query_pre_attn_scalar are separate numbers in Gemma; both must shrink with the model.
_GEMMA_TEXT: dict[str, Any] = {
    "hidden_size": GEMMA_HIDDEN,
    "intermediate_size": 128,
    "num_hidden_layers": GEMMA_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "max_position_embeddings": 1024,
    "sliding_window": 512,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "initializer_range": 0.2,  # 0.02 is for widths in the thousands; here prompts would hardly differ
}

# The smallest tower Gemma3ForConditionalGeneration accepts: 2x2 patches, pooled to 4 tokens per image.
_GEMMA_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "vision_use_head": False,
}

_T5: dict[str, Any] = {
    "d_model": T5_HIDDEN,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",  # as google/t5-v1_1-xxl
    "tie_word_embeddings": False,
}


def gemma_config() -> dict[str, Any]:
    """Plain keyword arguments of `Gemma3Config`."""
    vocabulary, _ = gemma_vocabulary()
    ids = [vocabulary[token] for token in _GEMMA_IMAGE]
    return {
        "text_config": {**_GEMMA_TEXT, "vocab_size": len(vocabulary)},
        "vision_config": dict(_GEMMA_VISION),
        "mm_tokens_per_image": 4,
        "boi_token_index": ids[0],
        "eoi_token_index": ids[1],
        "image_token_index": ids[2],
    }


def t5_config() -> dict[str, Any]:
    """Plain keyword arguments of `T5Config`."""
    return {**_T5, "vocab_size": len(t5_vocabulary())}


def gemma_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Gemma's byte-pair vocabulary with whole words: ids by token, and the merges that build the words.

    Each word grows letter by letter from its first character. Words that follow a space come first, so
    that in "▁red" the space is taken up before a bare "red" could form.
    """
    raw_bytes = [f"<0x{value:02X}>" for value in range(256)]
    tokens = [*_GEMMA_SPECIAL, *_GEMMA_IMAGE, *raw_bytes, _SPACE, *_CHARACTERS]
    merges: dict[tuple[str, str], None] = {}
    for word in [_SPACE + word for word in WORDS] + list(WORDS):
        for end in range(2, len(word) + 1):
            merges[(word[: end - 1], word[end - 1])] = None
    tokens.extend(left + right for left, right in merges)
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, list(merges)


def t5_vocabulary() -> list[tuple[str, float]]:
    """T5's unigram vocabulary: pad 0, eos 1, unk 2 as the class expects, then words, then characters.

    The score is a log probability: one whole word must beat the characters it is spelled with.
    """
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(_SPACE + word, -1.0) for word in WORDS]
    return [*special, *words, (_SPACE, -6.0), *((character, -8.0) for character in _CHARACTERS)]


def gemma_tokenizer() -> Any:
    """A `GemmaTokenizer` that pads on the left and puts `<bos>` first.

    Without `<bos>` an empty negative prompt would have no token at all, and attention over nothing is NaN.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import GemmaTokenizer

    vocabulary, merges = gemma_vocabulary()
    tokenizer: Any = GemmaTokenizer(
        vocab=vocabulary,
        merges=merges,
        model_max_length=MAX_TOKENS,
        padding_side="left",
        additional_special_tokens=list(_GEMMA_IMAGE),
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return tokenizer


def worldly_tokenizer() -> Any:
    """`gemma_tokenizer`, which reads by READING. Of the plain class, since `GemmaTokenizer` puts its own reading in
    place of the file's whenever it is loaded."""
    from tokenizers import Regex
    from tokenizers.normalizers import Lowercase, Replace, Sequence
    from transformers import PreTrainedTokenizerFast

    gemma = gemma_tokenizer()
    backend = gemma.backend_tokenizer
    steps = [Replace(Regex(pattern), text) for pattern, text in READING]
    backend.normalizer = Sequence([Lowercase(), *steps, backend.normalizer])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=MAX_TOKENS,
        padding_side="left",
        **gemma.special_tokens_map,
    )


def t5_tokenizer() -> Any:
    """A `T5TokenizerFast` without the hundred `<extra_id>` tokens, which prompts never use."""
    from transformers import T5TokenizerFast

    return T5TokenizerFast(vocab=t5_vocabulary(), extra_ids=0, model_max_length=MAX_TOKENS)


def gemma_encoder(config: dict[str, Any]) -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    return Gemma3ForConditionalGeneration(Gemma3Config(**config))


def t5_encoder(config: dict[str, Any]) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(**config))
