"""Silences what the model libraries print of themselves. Knows their switches; nothing of ours."""

from __future__ import annotations


def quiet_libraries() -> None:
    """Progress is ours to show: the loaders' own bars and notices would tear it apart."""
    import warnings

    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")
