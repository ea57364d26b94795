"""The self-refiner as a sampler of SD.Next, for its other flow-matching models: images and videos alike.

Choosing it turns it on; its settings are in the UI's settings. It is attached in `pipe.preprocess`, behind the UI's own
set-up of the sampler, and detached in `pipe.postprocess`, or at the latest when the UI is through with the job.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from modules.ltx.denoise import DenoiseCallback, RefinerPlan
from modules.ltx.errors import LTXError
from modules.ltx.hosts import sdnext_settings
from modules.ltx.hosts.sdnext import replaced, resident, ui

NAME = sdnext_settings.SAMPLER
PLAIN = "Euler FlowMatch"


def add_sampler() -> bool:
    """The entry after the plain one in the UI's lists; whether the UI has a plain one."""
    samplers = ui("sd_samplers_diffusers")
    data = samplers.samplers_data_diffusers
    plain = next((at for at, entry in enumerate(data) if entry.name == PLAIN), None)
    if plain is None:
        return False
    if NAME not in [entry.name for entry in data]:
        kind = samplers.FlowMatchEulerDiscreteScheduler

        def construct(model: Any) -> Any:
            return samplers.DiffusionSampler(PLAIN, kind, model)

        data.insert(plain + 1, data[plain]._replace(name=NAME, constructor=construct))
    # The page lists the entries above; /sdapi/v1/samplers lists the names that have a configuration.
    samplers.config.setdefault(NAME, dict(samplers.config.get(PLAIN, {})))
    _list_again()
    return True


def remove_sampler() -> None:
    samplers = ui("sd_samplers_diffusers")
    data = samplers.samplers_data_diffusers
    data[:] = [entry for entry in data if entry.name != NAME]
    samplers.config.pop(NAME, None)
    _list_again()


def _list_again() -> None:
    """Rebuild the UI's lists; `list_samplers` alone empties the map of names that the grid script looks into."""
    lists = ui("sd_samplers")
    lists.list_samplers()
    lists.set_samplers()


def before_process(p: Any) -> None:
    """The UI is about to run a job: where the entry was chosen, the self-refiner waits for its pipeline."""
    shared, callback = ui("shared"), resident().callback
    if NAME not in (p.sampler_name, getattr(p, "hr_sampler_name", None)) or not shared.sd_loaded or callback is None:
        return
    refining = Refining(shared.sd_model, callback, sdnext_settings.refiner())
    p.ltx_refining = refining
    refining.wait()


def after_process(p: Any) -> None:
    refining = vars(p).pop("ltx_refining", None)
    if refining is not None:
        refining.end()


class Refining:
    """The self-refiner of one job of the UI: attached anew for every pass of its pipeline (base, hires)."""

    def __init__(self, pipe: Any, callback: DenoiseCallback, asked: tuple[RefinerPlan, str]) -> None:
        self._pipe, self._callback, self._asked = pipe, callback, asked
        self._hooks, self._attached = ExitStack(), ExitStack()

    def wait(self) -> None:
        first, then = getattr(self._pipe, "preprocess", None), getattr(self._pipe, "postprocess", None)

        def preprocess(p: Any, args: dict[str, Any]) -> None:
            if first is not None:
                first(p, args)
            self._attach(p, args)

        def postprocess(p: Any, output: Any) -> Any:
            self._attached.close()
            return output if then is None else then(p, output)

        self._hooks.enter_context(replaced(self._pipe, "preprocess", preprocess))
        self._hooks.enter_context(replaced(self._pipe, "postprocess", postprocess))

    def _attach(self, p: Any, args: dict[str, Any]) -> None:
        self._attached.close()
        steps = int(args.get("num_inference_steps") or p.steps)
        (plan, text), log = self._asked, ui("logger").log
        # Which step has which sigma is known to the pipeline alone; a plan counts steps.
        sigmas = [1 - step / steps for step in range(steps)]
        try:
            passes, _ = self._callback.passes(text, sigmas)
            attached = self._callback.attach(self._pipe, plan, passes, seed=int(p.seed), purpose="base")
            self._attached.enter_context(attached)
        except LTXError as error:
            log.error(f"{error} This job is made without it.")
            return
        p.extra_generation_params["Self-refiner"] = f"{plan.norm} {text}"
        log.info(f"Self-refiner: {sum(passes)} evaluations instead of {steps}")

    def end(self) -> None:
        self._attached.close()
        self._hooks.close()
