"""What the installed diffusers can do, asked of its own classes, not of its version number.

SD.Next installs diffusers at a commit between two releases, whose version number does not say which arguments a class
takes. The source files of the classes do. Reading those costs milliseconds where importing diffusers costs seconds, so
that plans and lists of models can ask as well.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# Files of diffusers, relative to its folder.
_T2V = "pipelines/ltx2/pipeline_ltx2.py"
_I2V = "pipelines/ltx2/pipeline_ltx2_image2video.py"
_CONDITION = "pipelines/ltx2/pipeline_ltx2_condition.py"
_TRANSFORMER = "models/transformers/transformer_ltx2.py"


_POPPED = re.compile(r"kwargs\.pop\(\"(\w+)\"")


@dataclass(frozen=True)
class Question:
    """Whether a file of diffusers defines `owner` (a class or function at its top level), and whether that takes
    `parameter`: one of the function `method`'s, or a field of a dataclass where no method is named."""

    file: str
    owner: str
    method: str = ""
    parameter: str = ""

    def answered(self, diffusers: Path) -> bool:
        """Whether it is so in the package folder `diffusers`."""
        owner = _block(_text(diffusers / self.file), rf"(?:class|def) {self.owner}\b")
        if not self.parameter:
            return bool(owner)
        return self.parameter in _names(_block(owner, rf"    def {self.method}\(") if self.method else owner)


@dataclass(frozen=True)
class Feature:
    """One capability. `without`: what happens where it is missing; `ours`: the extension does it itself then, else the
    job is refused, with `since` as the first release that has it."""

    name: str
    questions: tuple[Question, ...]
    since: str
    without: str
    ours: bool = False

    def present(self, diffusers: Path) -> bool:
        return all(question.answered(diffusers) for question in self.questions)


IMAGE_CRF = Feature(
    "compression of a first image inside the call",
    (Question(_I2V, "LTX2ImageToVideoPipeline", "__call__", "image_crf"),),
    "0.40",
    "the extension compresses the image before the call; the same result",
    ours=True,
)
CONDITION_CRF = Feature(
    "compression of condition images inside the call",
    (Question(_CONDITION, "LTX2VideoCondition", "", "crf"),),
    "0.40",
    "the extension compresses the images before the call; the same result",
    ours=True,
)
DTYPE = Feature(
    "`dtype` as the name of a model's precision",
    (
        Question("models/modeling_utils.py", "ModelMixin", "from_pretrained", "dtype"),
        Question("pipelines/pipeline_utils.py", "DiffusionPipeline", "from_pretrained", "dtype"),
    ),
    "0.40",
    "models are loaded under its older name; the same result",
    ours=True,
)
LTX_25 = Feature(
    "LTX 2.5 (its transformer, duration head, prompt enhancer and diffusion decoder)",
    (
        Question(_TRANSFORMER, "LTX2VideoTransformer3DModel", "__init__", "use_prompt_adaln_single"),
        Question(_TRANSFORMER, "LTX2VideoTransformer3DModel", "__init__", "use_keyframes_abs_pos_embedding"),
        *(
            Question(file, owner, "__init__", part)
            for file, owner in (
                (_T2V, "LTX2Pipeline"),
                (_I2V, "LTX2ImageToVideoPipeline"),
                (_CONDITION, "LTX2ConditionPipeline"),
            )
            for part in ("duration_head", "prompt_enhancer")
        ),
        Question("models/autoencoders/ltx2_diffusion_decoder.py", "LTX2VideoDiffusionDecoderModel"),
    ),
    "0.40",
    "the variants of LTX 2.5 are not offered",
)
FEATURES = (IMAGE_CRF, CONDITION_CRF, DTYPE, LTX_25)


@cache  # what is installed stays as it is while this process runs
def has(feature: Feature) -> bool:
    """Whether the installed diffusers has the feature; False where none is installed."""
    folder = _folder("diffusers")
    return folder is not None and feature.present(folder)


def missing(feature: Feature) -> str:
    """What a feature needs that the installed diffusers does not have; empty where it has it."""
    return "" if has(feature) else f"needs diffusers >= {feature.since}"


def report() -> tuple[str, ...]:
    """What the installed diffusers does not have, in lines: what the extension does itself, then what is refused."""
    missing_here = [feature for feature in FEATURES if not has(feature)]
    ours = ", ".join(feature.name for feature in missing_here if feature.ours)
    done = (f"this diffusers lacks {ours}; the extension does that itself, with the same result",) if ours else ()
    return (*done, *(f"no {feature.name}: {feature.without}" for feature in missing_here if not feature.ours))


def in_dtype(kind: type, dtype: Any) -> dict[str, Any]:
    """The keyword with which `kind.from_pretrained` loads in `dtype`; the other name is unknown or deprecated."""
    return {"torch_dtype" if kind.__module__.startswith("diffusers.") and not has(DTYPE) else "dtype": dtype}


def _folder(package: str) -> Path | None:
    """Where a package is installed, found without importing it."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) if places else None


def _text(file: Path) -> str:
    """A source file; empty where it does not exist."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""


def _block(source: str, opening: str) -> str:
    """The statement that begins with `opening` (a pattern, with its indentation): all lines up to the next statement of
    that indentation. Empty where there is none. Parsing this alone is ten times as fast as parsing the file."""
    found = re.search(rf"^{opening}", source, re.MULTILINE)
    if found is None:
        return ""
    indent = re.match(" *", found[0])
    following = re.compile(rf"^{indent[0] if indent else ''}[A-Za-z@#]", re.MULTILINE).search(source, found.end())
    return textwrap.dedent(source[found.start() : following.start() if following else None])


def _names(source: str) -> frozenset[str]:
    """The parameters of a function, with those that it takes out of its `kwargs`; or the fields of a class."""
    node = next(iter(ast.parse(source).body), None)
    if isinstance(node, ast.FunctionDef):
        given = node.args
        named = (each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs))
        return frozenset((*named, *_POPPED.findall(source)))
    fields = (part.target for part in getattr(node, "body", ()) if isinstance(part, ast.AnnAssign))
    return frozenset(name.id for name in fields if isinstance(name, ast.Name))
