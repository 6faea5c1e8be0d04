"""An SVG of ours as PNG, by cairosvg: the extra ``osmosis-isolation[figures]``."""

from __future__ import annotations

from importlib import import_module

from osmosis.errors import OsmosisError

__all__ = ["PngError", "to_png"]


class PngError(OsmosisError):
    """A PNG cannot be made here, and what would help."""


def to_png(svg: str, *, scale: float = 2.0) -> bytes:
    """Return the drawing *svg* as PNG, *scale* pixels for each of its own.

    Raises
    ------
    PngError
        cairosvg, or the library cairo below it, is not installed.

    """
    try:
        renderer = import_module("cairosvg")
    except (ImportError, OSError) as exc:
        raise PngError(
            f"a PNG wants cairosvg and the library cairo ({exc}): pip install"
            " osmosis-isolation[figures], apt-get install libcairo2; or write .svg"
        ) from exc
    made: bytes = renderer.svg2png(bytestring=svg.encode(), scale=scale, unsafe=False)
    return made
