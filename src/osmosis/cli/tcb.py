"""``osmosis tcb SEL``: who can affect it."""

from osmosis.cli.boundary import asking

__all__ = ["tcb"]

tcb = asking(
    "tcb",
    lambda model: model.tcb,
    "Show the Trusted Computing Base of SEL: who can affect it, and by what.",
)
