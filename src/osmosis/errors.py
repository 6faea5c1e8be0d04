"""Every exception that osmosis raises on purpose.

* OsmosisError
  x ProcessError        one process could not be read; carries ``pid``
    + ProcessGone
    + AccessDenied
  x MalformedProc       a /proc file did not parse; carries ``path``, ``line``
  x SnapshotError       a snapshot file is damaged, hostile or too new; carries ``where``
  x FormatError         a foreign file (the paper's tool's CSV) is damaged; carries ``line``
  x SelectorError       no process, or several, match; carries ``candidates``; a LookupError
  x QueryError          a question that the model cannot be asked; a ValueError

None is an OSError: that class would take ``pid`` for its ``errno``. The OSError
that the kernel gave is on ``__cause__``.
"""

__all__ = [
    "AccessDenied",
    "FormatError",
    "MalformedProc",
    "OsmosisError",
    "ProcessError",
    "ProcessGone",
    "QueryError",
    "SelectorError",
    "SnapshotError",
]


class OsmosisError(Exception):
    """Base of everything below: ``except OsmosisError`` catches osmosis."""


class ProcessError(OsmosisError):
    """One process could not be read: a scan notes it in the ledger and goes on."""

    why = "cannot be read"

    def __init__(self, pid: int, why: str | None = None) -> None:
        super().__init__(pid, why)  # args rebuild the exception when unpickled
        self.pid = pid
        self.why = why or self.why

    def __str__(self) -> str:
        return f"process {self.pid}: {self.why}"


class ProcessGone(ProcessError):
    """The process exited, or replaced itself by execve, before or during the read."""

    why = "exited, or called execve, while it was being read"


class AccessDenied(ProcessError):
    """The kernel refused: PTRACE_MODE_READ is needed on the process."""

    why = "reading it needs CAP_SYS_PTRACE, or to be the same user"


class MalformedProc(OsmosisError):
    """A /proc file did not parse: a kernel newer than we know, or our bug."""

    def __init__(self, path: str, line: bytes) -> None:
        super().__init__(path, line)
        self.path = path
        self.line = line

    def __str__(self) -> str:
        return f"{self.path}: don't know how to read {self.line!r}"


class SnapshotError(OsmosisError):
    """A snapshot cannot be used: damaged, hostile, or of a schema we do not know."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(where, why)
        self.where = where
        self.why = why

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class FormatError(OsmosisError):
    """A foreign file is damaged; ``line`` counts from 1, 0 where no line is at fault."""

    def __init__(self, path: str, line: int, why: str) -> None:
        super().__init__(path, line, why)
        self.path = path
        self.line = line
        self.why = why

    def __str__(self) -> str:
        at = f"{self.path}:{self.line}" if self.line else self.path
        return f"{at}: {self.why}"


class SelectorError(OsmosisError, LookupError):
    """A selector matches no protection domain, or several; ``candidates`` lists some."""

    def __init__(self, selector: str, why: str, candidates: tuple[str, ...] = ()) -> None:
        super().__init__(selector, why, candidates)
        self.selector = selector
        self.why = why
        self.candidates = candidates

    def __str__(self) -> str:
        said = f"{self.selector!r}: {self.why}"
        return f"{said}: {', '.join(self.candidates)}" if self.candidates else said


class QueryError(OsmosisError, ValueError):
    """A question the model cannot be asked: an unknown type, verb, access or option."""
