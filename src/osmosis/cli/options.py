"""Options that several commands take, said once."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Access",
    "All",
    "By",
    "Depth",
    "Json",
    "Other",
    "OwnAccess",
    "Potential",
    "Selector",
    "Services",
    "Snapshot",
    "Through",
    "Top",
    "Types",
    "Verbs",
    "listed",
]

Snapshot = Annotated[
    Path | None,
    typer.Option(
        "--snapshot",
        "-s",
        metavar="FILE",
        help="Ask this file, a snapshot or a CSV of the paper's tool, and not the live host.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON; docs/cli.md lists the keys.")]
By = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="KEY",
        help="Take processes together: container, unit, user, cgroup, exe or role.",
    ),
]
Top = Annotated[int, typer.Option("--top", "-n", min=1, metavar="N", help="Print N rows.")]
All = Annotated[bool, typer.Option("--all", "-a", help="Print all rows.")]
Selector = Annotated[
    str,
    typer.Argument(
        metavar="SEL",
        help="A pid, or pid: comm: exe: container: unit: user: role: id: and a name.",
        show_default=False,
    ),
]
Other = Annotated[
    str,
    typer.Argument(metavar="SEL", help="The other one, as the first.", show_default=False),
]
Access = Annotated[
    str,
    typer.Option(
        metavar="RWX", help="What the other's path to a shared resource must allow, or ANY."
    ),
]
OwnAccess = Annotated[
    str, typer.Option(metavar="RWX", help="What the asked one's own path must allow, or ANY.")
]
Types = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Only these types of resource: MO,FILE,SHM ..."),
]
Verbs = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="What counts as control: kill,trace-attach ..."),
]
Services = Annotated[
    bool, typer.Option("--services", help="Whom it asks for a service is a member, too.")
]
Potential = Annotated[
    bool, typer.Option("--potential", help="Count what was not observed, but could be used.")
]
Depth = Annotated[str, typer.Option(metavar="N", help="Steps: a number, or all for the closure.")]
Through = Annotated[
    str, typer.Option(metavar="any|power", help="What a further step goes on from.")
]


def listed(text: str | None) -> tuple[str, ...] | None:
    """Return the names of a comma-separated list; None as it is, "" as no name."""
    if text is None:
        return None
    return tuple(name.strip() for name in text.split(",") if name.strip())
