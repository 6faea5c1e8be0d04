"""Exit codes, and errors turned into one line on stderr."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import Any, ParamSpec

import typer

from osmosis.cli.terminal import complain
from osmosis.errors import OsmosisError, SelectorError
from osmosis.graph.pds import escape

__all__ = ["Code", "UsageError", "answering"]

P = ParamSpec("P")
AMBIGUOUS = "PDs, one is wanted"


class Code(IntEnum):
    """What ``osmosis`` exits with."""

    ANSWERED = 0
    ERROR = 1
    USAGE = 2
    INCOMPLETE = 3  # answered, but not all that was asked for could be known
    INTERRUPTED = 130  # 128 + SIGINT, as shells count
    PIPE = 141  # 128 + SIGPIPE


class UsageError(Exception):
    """Options that do not go together; the message says what would."""


def answering(command: Callable[P, Code]) -> Callable[P, None]:
    """Make *command* a command of typer: its result is the exit code, its errors one line."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        code = _code_of(lambda: command(*args, **kwargs))
        if code:
            raise typer.Exit(int(code))

    # The wrapper answers None; typer reads parameters from the wrapped signature.
    return run


def _code_of(command: Callable[[], Code]) -> Code:
    try:
        code = command()
        sys.stdout.flush()
    except UsageError as exc:
        complain(str(exc))
        return Code.USAGE
    except SelectorError as exc:
        many = AMBIGUOUS in exc.why
        hint = "; add --by container, unit, user or role to ask about a group" if many else ""
        complain(str(exc) + hint)
        return Code.ERROR
    except OsmosisError as exc:
        complain(str(exc))
        return Code.ERROR
    except BrokenPipeError:
        _drop_stdout()
        return Code.PIPE
    except KeyboardInterrupt:
        return Code.INTERRUPTED
    except OSError as exc:
        complain(_os_error(exc))
        return Code.ERROR
    except MemoryError:
        complain("not enough memory; ask about fewer processes, or of a snapshot on a larger host")
        return Code.ERROR
    except Exception as exc:
        if os.environ.get("OSMOSIS_DEBUG") == "1":
            raise
        complain(
            f"a bug of ours: {type(exc).__name__}: {exc}; please report it, with what"
            " OSMOSIS_DEBUG=1 shows"
        )
        return Code.ERROR
    return code


def _os_error(exc: OSError) -> str:
    why = exc.strerror or str(exc) or type(exc).__name__
    return f"{escape(os.fsdecode(exc.filename))}: {why}" if exc.filename is not None else why


def _drop_stdout() -> None:
    """Let the interpreter's last flush go nowhere: the reader has gone."""
    with suppress(OSError, ValueError, AttributeError):
        null: Any = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
