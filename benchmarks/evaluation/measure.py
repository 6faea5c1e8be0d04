"""One mechanism from beginning to end: up, captured, down, and nothing of it left."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import osmosis
from benchmarks.evaluation.base import (
    CannotRun,
    Instances,
    Mechanism,
    Stage,
    ancestors,
    descendants,
    start_time,
)
from benchmarks.evaluation.keeper import stop_strays, strays
from benchmarks.evaluation.leftovers import PATIENCE, Inventory, appeared, inventory
from benchmarks.evaluation.mechanisms import MECHANISMS
from benchmarks.evaluation.publish import publish
from osmosis.snapshot import Snapshot

__all__ = ["capture", "measure", "pids_of"]

HOST_USER = 64010  # an ordinary user's process beside the containers


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


def capture(
    pids: list[int] | None, instances: Instances, work: Path | None = None, **facts: Any
) -> Snapshot:
    """Take a snapshot, with the roles inside and names of this machine taken out."""
    found = osmosis.capture(pids)
    host = {**found.host, "roles": instances.roles(), "containers": instances.containers}
    return publish(Snapshot(found.columns, {**host, **facts}), work)


def measure(name: str, work: Path, out: Path, *, whole: bool = False) -> dict[str, Any]:
    """Run one mechanism from beginning to end; returns what the JSON file says."""
    mechanism = MECHANISMS[name]()
    said: dict[str, Any] = {"mechanism": name, "kernel": platform.release()}
    started = time.monotonic()
    before = inventory()
    host = Stage(work / "host")
    try:
        user = ("setpriv", f"--reuid={HOST_USER}", f"--regid={HOST_USER}", "--clear-groups")
        sleep = ("sleep", "1000000")
        beside = [host.spawn(*line, *sleep, log="host", cwd="/").pid for line in ((), user)]
        instances = mechanism.up(work / name)
        said["up_s"] = round(time.monotonic() - started, 1)
        facts = {
            "mechanism": name,
            "note": getattr(mechanism, "note", ""),
            "others": {
                role: [f"{pid}:{start_time(pid)}" for pid in found]
                for role, found in instances.others.items()
            },
        }
        said |= facts | {"roles": instances.roles(), "containers": instances.containers}
        at = time.monotonic()
        chosen = None if whole else pids_of(instances, beside)
        snapshot = capture(chosen, instances, work, **facts)
        said["capture_s"] = round(time.monotonic() - at, 2)
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
        said["left"] = _tear_down(mechanism, host, before)
    if "failed" not in said and not said["left"]:
        for folder in (work / name, work / "host"):  # logs, of no more use
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            work.rmdir()  # unless a failed mechanism's logs are there
    said["seconds"] = round(time.monotonic() - started, 1)
    return said


def _tear_down(mechanism: Mechanism, host: Stage, before: Inventory) -> list[str]:
    """Take all down; returns what is left behind, which should be nothing."""
    left = []
    for close in (mechanism.down, host.close):
        try:
            close()
        except Exception as exc:
            left.append(str(exc))
    until = time.monotonic() + PATIENCE
    while strays() and time.monotonic() < until:
        time.sleep(0.05)
    return left + stop_strays() + appeared(before)
