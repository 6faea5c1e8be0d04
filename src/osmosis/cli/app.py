"""What ``osmosis`` runs: imports typer and rich late, to say well that they are missing."""

import sys

__all__ = ["main"]

EXTRA = ("rich", "typer")


def main() -> None:
    """Run the command line and exit: 0 answered, 1 error, 2 usage, 3 answered incompletely."""
    try:
        from osmosis.cli.commands import app
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] not in EXTRA:
            raise
        print(  # noqa: T201  # rich is what is missing
            f"osmosis: the command line needs {exc.name}: pip install osmosis-isolation[cli]",
            file=sys.stderr,
        )
        sys.exit(1)
    # What a terminal's encoding cannot say is escaped, never an error.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    app(prog_name="osmosis")
