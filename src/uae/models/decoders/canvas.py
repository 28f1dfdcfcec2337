"""What pictures a decoder can paint."""

from __future__ import annotations

from typing import NamedTuple


class Canvas(NamedTuple):
    """Sizes in latents and in pixels."""

    channels: int
    """Of the latents."""
    downscale: int
    """Pixels per latent, along a side."""
    step: int
    """Height and width in pixels are multiples of it."""
    largest: int
    """Pixels, along a side."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """``(c, h, w)`` of the latents of a ``height x width`` image.

        Raises:
            ValueError: for a size that cannot be painted.
        """
        for size in (height, width):
            if size % self.step or not 0 < size <= self.largest:
                raise ValueError(
                    f"expected height and width in multiples of {self.step} up to "
                    f"{self.largest} pixels, got {height}x{width}"
                )
        return self.channels, height // self.downscale, width // self.downscale
