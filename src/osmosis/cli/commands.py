"""Every command under its name."""

import typer

from osmosis.cli import (
    capture,
    compare,
    controllers,
    controls,
    diff,
    explain,
    graph,
    ib,
    isolation,
    overview,
    shared,
    tcb,
)

__all__ = ["app"]

# No rich markup: help and errors echo what the user typed.
app = typer.Typer(
    name="osmosis",
    help=overview.__doc__,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.callback(invoke_without_command=True)(overview.overview)
for command in (
    capture.capture,
    tcb.tcb,
    ib.ib,
    shared.shared,
    controllers.controllers,
    controls.controls,
    explain.explain,
    isolation.isolation,
    graph.graph,
    compare.compare,
    diff.diff,
):
    app.command()(command)
