"""Bring each mechanism up, capture, tear it down: ``python -m benchmarks.evaluation.run``.

Writes DIR/MECHANISM.osm, with the roles inside, and DIR/MECHANISM.json beside it: who is who,
how long it took, or the reason why there is no snapshot. One mechanism that fails does not
stop the others. With ``--report`` the snapshots are compared, and docs/evaluation.md says what
came out; ``python -m benchmarks.evaluation.report DIR`` does that alone, on any machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.evaluation.base import cache_dir
from benchmarks.evaluation.install import install
from benchmarks.evaluation.keeper import keep
from benchmarks.evaluation.leftovers import appeared, inventory
from benchmarks.evaluation.mechanisms import MECHANISMS

__all__ = ["SAVED", "main"]

SAVED = Path(__file__).parents[2] / "tests" / "data" / "evaluation"


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; 1 if a mechanism failed or left something behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="mechanisms, with commas between them")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="for snapshots")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/osmosis-evaluation"))
    parser.add_argument("--whole-host", action="store_true", help="capture all processes")
    parser.add_argument("--install", action="store_true", help="apt-get install what is missing")
    parser.add_argument("--report", action="store_true", help="compare, and write the page")
    parser.add_argument("--save", action="store_true", help="replace the saved snapshots too")
    parser.add_argument("--forget", action="store_true", help="remove the cached trees and images")
    parser.add_argument("--list", action="store_true", help="name the mechanisms")
    asked = parser.parse_args(argv)
    if asked.list:
        print("\n".join(MECHANISMS))
        return 0
    names = asked.only.split(",") if asked.only else list(MECHANISMS)
    if unknown := [n for n in names if n not in MECHANISMS]:
        parser.error(f"no such mechanism: {', '.join(unknown)}; there are {', '.join(MECHANISMS)}")
    return keep(lambda: _run(asked, names))


def _run(asked: argparse.Namespace, names: list[str]) -> int:
    from benchmarks.evaluation.measure import measure  # NumPy starts threads: after the fork

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    if asked.install:
        for line in install():
            print(f"not installed: {line}", flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    before = inventory()
    bad = False
    for name in names:
        for stale in (asked.out / f"{name}.osm", asked.out / f"{name}.json"):
            stale.unlink(missing_ok=True)
        said = measure(name, asked.work, asked.out, whole=asked.whole_host)
        (asked.out / f"{name}.json").write_text(json.dumps(said, indent=1) + "\n")
        bad |= "failed" in said or bool(said["left"])
        print(_line(said), flush=True)
    left = appeared(before, 0)
    if not bad and asked.work.exists():  # after a failure its logs are there
        left.append(f"folder {asked.work}")
    if left:
        bad = True
        print(f"LEFT BEHIND by all together: {'; '.join(left)}")
    if asked.forget:
        shutil.rmtree(cache_dir(), ignore_errors=True)
    if asked.save:
        _save(names, asked.out)
    if asked.report:
        from benchmarks.evaluation.report import PAGE, report

        # The page is of all mechanisms: a few of them are only printed.
        page = PAGE if asked.save or not asked.only else None
        bad |= bool(report(SAVED if asked.save else asked.out, page))
    return int(bad)


def _save(names: list[str], out: Path) -> None:
    """Put the new snapshots in place of the saved ones; what did not run keeps its old one."""
    SAVED.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (out / f"{name}.osm").exists():
            shutil.copyfile(out / f"{name}.osm", SAVED / f"{name}.osm")
        else:
            print(f"{name:22} not renewed: its saved snapshot stays as it was")


def _line(said: dict[str, Any]) -> str:
    name = said["mechanism"]
    left = f"  LEFT BEHIND: {'; '.join(said['left'])}" if said["left"] else ""
    if "cannot" in said:
        return f"{name:22} cannot run here: {said['cannot']}{left}"
    if "failed" in said:
        return f"{name:22} FAILED: {said['failed']}{left}"
    note = f"  ({said['note']})" if said["note"] else ""
    return (
        f"{name:22} {said['processes']:4} processes {said['bytes'] / 1e6:6.2f} MB"
        f"  up {said['up_s']:5.1f} s  capture {said['capture_s']:5.2f} s{note}{left}"
    )


def _stop(signum: int, _: FrameType | None) -> None:
    raise SystemExit(128 + signum)  # through the finally blocks


if __name__ == "__main__":
    sys.exit(main())
