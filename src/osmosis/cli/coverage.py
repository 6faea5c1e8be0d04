"""What was read and what was not: the line of the overview, and whether it touches an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from osmosis.cli.source import Source
from osmosis.graph.pds import escape
from osmosis.schema import Status

__all__ = ["Gaps", "describe", "gaps", "to_json"]

CAP_SYS_PTRACE, CAP_SYS_ADMIN = 19, 21  # include/uapi/linux/capability.h
GONE = Status.NAMES[Status.GONE]
HOST = 0  # the pid of a ledger row about the whole host


class Gaps(NamedTuple):
    """Ledger rows of what was not fully read."""

    rows: list[Any]  # that touch what was asked: of its processes, or of the whole host
    processes: int  # distinct processes among them
    ended: int  # processes that ended while the capture ran, and are not in the model

    def __bool__(self) -> bool:
        return bool(self.rows)


def gaps(source: Source, rows: Iterable[int] | None = None) -> Gaps:
    """Return what was not read of the PDs *rows* of the model, None for all, and of the host.

    A process that ended during the capture is no gap: it is not part of what was asked.
    """
    coverage = source.model.coverage
    if coverage is None:
        return Gaps([], 0, 0)
    found = list(coverage.gaps)
    if source.host is None:  # dropped rows of a CSV: nobody knows whom they touch
        return Gaps(found, 0, 0)
    pids = _pids(source, rows)
    touching = [gap for gap in found if gap.pid == HOST or gap.pid in pids]
    ended = {gap.pid for gap in found if gap.status == GONE} - _pids(source, None)
    return Gaps(touching, len({gap.pid for gap in touching} - {HOST}), len(ended))


def _pids(source: Source, rows: Iterable[int] | None) -> set[int]:
    """Pids of rows of the model, or of the members of its groups."""
    table = source.model.pds
    if rows is None:
        below = table if table.members is None else table.members[0]
        return set(below.pid.tolist()) - {-1}
    wanted = np.fromiter(rows, np.int64)
    if table.members is None:
        return set(table.pid[wanted].tolist()) - {-1}
    below, of = table.members
    return set(below.pid[np.isin(of, wanted)].tolist()) - {-1}


def describe(source: Source, found: Gaps) -> list[str]:
    """Return the coverage line, and the line of what root would add where it is wanting."""
    model, host = source.model, source.host
    table = model.pds if model.pds.members is None else model.pds.members[0]
    n = len(table) - (model.kernel is not None)
    if host is None:
        lines = [f"{n} protection domains of {escape(source.name)}"]
        if found.rows:
            lines[0] += f"; {len(found.rows)} rows were not understood and are left out"
        return lines
    where = escape(str(host.get("hostname", "?")))
    line = f"{n} processes of {where} (Linux {escape(str(host.get('kernel', '?')))})"
    line += f", captured {escape(str(host.get('captured_at', '?')))}"
    line += f" in {float(host.get('seconds', 0)):.2f} s"
    if found.processes:
        line += f"; {n - found.processes} read whole, {found.processes} not: "
        line += _counted(gap for gap in found.rows if gap.pid != HOST)
    else:
        line += "; all read whole"
    if found.ended:
        line += f"; {found.ended} ended meanwhile"
    lines = [line]
    lines += [
        f"host: {escape(gap.source)} {gap.status}: {escape(gap.reason)}"
        + (f" ({gap.count})" if gap.count else "")
        for gap in found.rows
        if gap.pid == HOST
    ]
    lacking = _lacking(host)
    if lacking:
        run = "run it as root" if source.live else "capture as root"
        lines.append(
            f"{lacking}: {run} to see the physical frames, and the memory, namespaces and"
            " files of other users' processes"
        )
    return lines


def _counted(rows: Iterable[Any]) -> str:
    counts = Counter(
        (gap.source, gap.status)
        for gap in rows
        if (gap.source, gap.status) != ("processes", "partial")
    )
    return ", ".join(f"{escape(s)} {status} {n}" for (s, status), n in counts.most_common(6))


def _lacking(host: Mapping[str, Any]) -> str:
    """What the collector had too little of: "not root", or capabilities; "" if nothing."""
    try:
        held = int(str(host.get("cap_eff")), 16)
    except ValueError:
        held = -1 if host.get("euid") == 0 else 0
    wanted = {"CAP_SYS_ADMIN": CAP_SYS_ADMIN, "CAP_SYS_PTRACE": CAP_SYS_PTRACE}
    missing = [name for name, bit in wanted.items() if not held >> bit & 1]
    if not missing:
        return ""
    return "not root" if host.get("euid") != 0 else f"without {' and '.join(missing)}"


def to_json(source: Source, found: Gaps) -> dict[str, Any]:
    """Return the coverage as JSON values."""
    table = source.model.pds if source.model.pds.members is None else source.model.pds.members[0]
    out: dict[str, Any] = {
        "processes": len(table) - (source.model.kernel is not None),
        "complete": not found.rows,
        "ended": found.ended,
    }
    if source.host is None:
        out["gaps"] = [{"line": gap.line, "reason": gap.reason} for gap in found.rows]
        return out
    out["host"] = {k: source.host.get(k) for k in ("hostname", "kernel", "captured_at", "seconds")}
    out["lacking"] = _lacking(source.host)
    out["gaps"] = [
        {
            "pid": gap.pid,
            "source": gap.source,
            "status": gap.status,
            "count": gap.count,
            "reason": gap.reason,
        }
        for gap in found.rows
    ]
    return out
