"""Bring each mechanism up, capture, tear it down: ``python -m benchmarks.evaluation.run``.

Writes DIR/MECHANISM.osm, with the roles inside, and DIR/MECHANISM.json beside it: who is who,
how long it took, or the reason why there is no snapshot. One mechanism that fails does not
stop the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.evaluation.base import (
    CannotRun,
    Instances,
    Mechanism,
    Stage,
    ancestors,
    comm,
    command,
    descendants,
    start_time,
)
from benchmarks.evaluation.mechanisms import MECHANISMS, PACKAGES

__all__ = ["main", "measure", "pids_of"]

HOST_USER = 64010  # an ordinary user's process beside the containers
PATIENCE = 15.0  # seconds for what was told to end


def pids_of(instances: Instances, host: list[int]) -> list[int]:
    """Return what belongs to the comparison: the instances, what started them, the host's two.

    Everything else that runs on the machine is left out, so that two machines compare.
    """
    wanted = instances.all()
    for pid in list(wanted):
        wanted.update(descendants(pid))
        wanted.update(ancestors(pid))
    wanted -= {1, os.getpid(), *ancestors(os.getpid())}
    return sorted(wanted | set(host))


def capture(pids: list[int] | None, instances: Instances) -> Any:
    """Take a snapshot, with the roles inside."""
    import osmosis
    from osmosis.snapshot import Snapshot

    snapshot = osmosis.capture(pids)
    return Snapshot(
        snapshot.columns,
        {**snapshot.host, "roles": instances.roles(), "containers": instances.containers},
    )


def measure(name: str, work: Path, out: Path, *, whole: bool) -> dict[str, Any]:
    """Run one mechanism from beginning to end; returns what the JSON file says."""
    mechanism = MECHANISMS[name]()
    said: dict[str, Any] = {"mechanism": name, "kernel": platform.release()}
    started = time.monotonic()
    host = Stage(work / "host")
    pids: dict[int, int] = {}
    try:
        root = host.spawn("sleep", "1000000", log="host")
        user = host.spawn(
            "setpriv", f"--reuid={HOST_USER}", f"--regid={HOST_USER}", "--clear-groups",
            "sleep", "1000000", log="host", cwd="/",
        )  # fmt: skip
        instances = mechanism.up(work / name)
        said["up_s"] = round(time.monotonic() - started, 1)
        named = {pid: start_time(pid) for pid in instances.all()}
        pids.update(named)
        said["roles"] = instances.roles()
        said["containers"] = instances.containers
        if note := getattr(mechanism, "note", ""):
            said["note"] = note
        said["others"] = {
            role: [[pid, comm(pid)] for pid in found] for role, found in instances.others.items()
        }
        chosen = None if whole else pids_of(instances, [root.pid, user.pid])
        before = time.monotonic()
        snapshot = capture(chosen, instances)
        said["capture_s"] = round(time.monotonic() - before, 2)
        said["processes"] = snapshot.n_processes
        path = out / f"{name}.osm"
        snapshot.save(path)
        said["snapshot"] = path.name
        said["bytes"] = path.stat().st_size
    except CannotRun as exc:
        said["cannot"] = str(exc)
    except Exception as exc:
        said["failed"] = f"{type(exc).__name__}: {exc}"
    finally:
        said["left"] = _tear_down(mechanism, host, work, pids)
    if "failed" not in said and not said["left"]:
        for folder in (work / name, work / "host"):  # logs, of no more use
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            work.rmdir()  # unless a failed mechanism's logs are there
    said["seconds"] = round(time.monotonic() - started, 1)
    return said


def _tear_down(mechanism: Mechanism, host: Stage, work: Path, pids: dict[int, int]) -> list[str]:
    """Take all down; returns what is left behind, which should be nothing."""
    left = []
    for close in (mechanism.down, host.close):
        try:
            close()
        except Exception as exc:
            left.append(str(exc))
    until = time.monotonic() + PATIENCE
    alive = dict(pids)
    while alive and time.monotonic() < until:
        alive = {p: t for p, t in alive.items() if _same(p, t)}
        time.sleep(0.05)
    left += [f"process {pid} {comm(pid)}" for pid in alive]
    mounts = Path("/proc/self/mounts").read_text(errors="replace")
    left += [f"mount {line}" for line in mounts.splitlines() if f" {work}/" in line]
    return left


def _same(pid: int, start: int) -> bool:
    try:
        return start_time(pid) == start
    except (OSError, ValueError):
        return False


def _line(said: dict[str, Any]) -> str:
    name = said["mechanism"]
    if "cannot" in said:
        return f"{name:22} cannot run here: {said['cannot']}"
    if "failed" in said:
        return f"{name:22} FAILED: {said['failed']}"
    left = f"  LEFT BEHIND: {'; '.join(said['left'])}" if said["left"] else ""
    return (
        f"{name:22} {said['processes']:4} processes {said['bytes'] / 1e6:6.2f} MB"
        f"  up {said['up_s']:5.1f} s  capture {said['capture_s']:5.2f} s{left}"
    )


def _stop(signum: int, _: FrameType | None) -> None:
    raise SystemExit(128 + signum)  # through the finally blocks


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; 1 if a mechanism failed or left something behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="mechanisms, with commas between them")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="for snapshots")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/osmosis-evaluation"))
    parser.add_argument("--whole-host", action="store_true", help="capture all processes")
    parser.add_argument("--install", action="store_true", help="apt-get install what is missing")
    parser.add_argument("--list", action="store_true", help="name the mechanisms")
    asked = parser.parse_args(argv)
    if asked.list:
        print("\n".join(MECHANISMS))
        return 0
    names = asked.only.split(",") if asked.only else list(MECHANISMS)
    if unknown := [n for n in names if n not in MECHANISMS]:
        parser.error(f"no such mechanism: {', '.join(unknown)}; there are {', '.join(MECHANISMS)}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    if asked.install:
        install = ("apt-get", "install", "-y", "--no-install-recommends", *PACKAGES.split())
        command(*install, env={"DEBIAN_FRONTEND": "noninteractive"}, timeout=900)
    asked.out.mkdir(parents=True, exist_ok=True)
    bad = False
    for name in names:
        said = measure(name, asked.work, asked.out, whole=asked.whole_host)
        (asked.out / f"{name}.json").write_text(json.dumps(said, indent=1) + "\n")
        bad |= "failed" in said or bool(said["left"])
        print(_line(said), flush=True)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
