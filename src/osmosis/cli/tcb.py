"""``osmosis tcb SEL``: who can affect it."""

from __future__ import annotations

from osmosis.cli.answers import boundary
from osmosis.cli.exits import Code, answering
from osmosis.cli.options import (
    Access,
    All,
    By,
    Depth,
    Json,
    OwnAccess,
    Potential,
    Selector,
    Services,
    Snapshot,
    Through,
    Top,
    Types,
    Verbs,
)

__all__ = ["tcb"]


@answering
def tcb(
    selector: Selector,
    snapshot: Snapshot = None,
    json: Json = False,
    by: By = None,
    access: Access = "W",
    own_access: OwnAccess = "ANY",
    types: Types = None,
    verbs: Verbs = None,
    services: Services = False,
    potential: Potential = False,
    depth: Depth = "1",
    through: Through = "any",
    top: Top = 40,
    all_: All = False,
) -> Code:
    """Show the Trusted Computing Base of SEL: who can affect it, and by what."""
    return boundary(
        "tcb",
        selector,
        snapshot=snapshot,
        by=by,
        json=json,
        top=None if all_ else top,
        options={
            "access": access,
            "own_access": own_access,
            "types": types,
            "verbs": verbs,
            "services": services,
            "potential": potential,
            "depth": depth,
            "through": through,
        },
    )
