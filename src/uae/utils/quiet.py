"""Libraries that print progress of their own are asked not to; warnings stay."""

from __future__ import annotations


def quiet_libraries() -> None:
    """No loading bars of transformers and diffusers."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
