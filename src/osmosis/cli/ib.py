"""``osmosis ib SEL``: whom it can affect."""

from osmosis.cli.boundary import asking

__all__ = ["ib"]

ib = asking(
    "ib",
    lambda model: model.impact_boundary,
    "Show the Impact Boundary of SEL: whom it can affect, and by what.",
)
