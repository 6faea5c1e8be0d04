"""The one table of a run: what was measured, beside what, and whether the target is met."""

from __future__ import annotations

import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


@dataclass(frozen=True, slots=True)
class Line:
    """One line: a ratio or a time, with its target and how far it was spread."""

    name: str
    value: float
    unit: str  # "" for a ratio
    target: float | None
    more_is_better: bool
    low: float
    high: float
    note: str

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.more_is_better else self.value <= self.target


class Table:
    """Collects lines; ``check`` fails a test whose line left its recorded bound."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def add(
        self,
        name: str,
        values: Sequence[float] | float,
        *,
        unit: str = "",
        target: float | None = None,
        more_is_better: bool = False,
        bound: float | None = None,
        note: str = "",
    ) -> None:
        """Add a line of the median of *values*.

        Parameters
        ----------
        name, values, unit, note
            What it says.
        target
            What is wanted: at most, or with *more_is_better* at least. Only shown.
        bound
            Loose, and held: past it the run fails, as something became much worse. For ratios
            only: times are other on every machine.

        """
        many = [values] if isinstance(values, (int, float)) else list(values)
        middle = statistics.median(many)
        line = Line(name, middle, unit, target, more_is_better, min(many), max(many), note)
        self.lines.append(line)
        if bound is not None:
            worse = middle < bound if more_is_better else middle > bound
            assert not worse, f"{name}: {middle:.3g}, the recorded bound is {bound:g}"

    def markdown(self) -> str:
        """Return the table as text that is legible as it is."""
        head = ("measured", "median", "spread", "target", "met", "")
        rows = [head]
        for line in self.lines:
            sign = ">=" if line.more_is_better else "<="
            target = "" if line.target is None else f"{sign} {_number(line.target)} {line.unit}"
            met = {True: "yes", False: "**no**", None: ""}[line.met]
            spread = ""
            if line.low != line.high:
                spread = f"{_number(line.low)} .. {_number(line.high)}"
            value = f"{_number(line.value)} {line.unit}".strip()
            rows.append((line.name, value, spread, target.strip(), met, line.note))
        widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
        out = [_row(rows[0], widths), "|" + "|".join("-" * (w + 2) for w in widths) + "|"]
        out += [_row(row, widths) for row in rows[1:]]
        return "\n".join(out)

    def write(self) -> None:
        """Put the table into docs/performance.md, between its two marks."""
        text = PAGE.read_text()
        made = f"{BEGIN}\n{machine()}\n\n{self.markdown()}\n{END}"
        pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
        if not pattern.search(text):
            msg = f"{PAGE} has not the marks {BEGIN} and {END}"
            raise ValueError(msg)
        PAGE.write_text(pattern.sub(lambda _: made, text))


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (f" {cell:<{width}} " for cell, width in zip(cells, widths, strict=True))
    return "|" + "|".join(padded) + "|"


def _number(value: float) -> str:
    if value == 0 or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def machine() -> str:
    """One line of where and when."""
    model, processors = "", 0
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            processors += 1
    kib = int(Path("/proc/meminfo").read_text().split()[1])
    day = datetime.now(UTC).date().isoformat()
    return (
        f"{day}; {model}, {processors} processors, {kib / (1 << 20):.0f} GiB; "
        f"Linux {platform.release()}; Python {platform.python_version()}."
    )
