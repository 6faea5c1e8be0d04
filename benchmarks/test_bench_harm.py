"""What a capture does to those it captures: the latency of a busy Redis while it goes on."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from benchmarks import redis
from benchmarks.apart import ENVIRONMENT, ROOT
from benchmarks.conftest import ROUNDS, ratios
from benchmarks.farm import Shape

PERIOD = 1.0  # seconds from one capture to the next
LOADED = 3.0  # seconds of requests in one round, about


@contextmanager
def disturbed(how: str, seconds: float = 0.0, *, nice: int = 0) -> Iterator[dict[str, Any]]:
    """Somebody else disturbs the host; the dict is filled at the end with what it reports."""
    report: dict[str, Any] = {}
    if how == "nothing":
        yield report
        return
    command = [sys.executable, "-m", "benchmarks.disturb", how, str(PERIOD), str(seconds)]
    with subprocess.Popen(
        ["nice", "-n", str(nice), *command], cwd=ROOT, env=ENVIRONMENT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield report
        finally:
            process.stdin.close()
            last = process.stdout.readline()
        report |= json.loads(last)


@pytest.fixture
def server() -> Iterator[redis.Redis]:
    if redis.missing():
        pytest.skip(f"{redis.missing()} is not installed")
    with redis.Redis() as one:
        yield one


def test_latency_of_a_busy_redis(farms, server, benchmark, table, small):
    """By turns: nobody disturbs, a capture a second, smaps a second, a burner of like CPU time."""
    farm = farms(Shape(processes=200))
    rounds = 3 if small else ROUNDS
    requests = int(server.load(50_000)["rps"] * LOADED)
    p99: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    late: dict[str, int] = {}

    def once(name: str, how: str, seconds: float = 0.0, *, nice: int = 0) -> None:
        with disturbed(how, seconds, nice=nice) as report:
            p99.setdefault(name, []).append(server.load(requests)["p99_latency_ms"])
        if how == "nothing":
            return
        assert report["times"] >= 1
        if how != "burn":
            assert {server.pid, *farm.pids} <= set(report["pids"])
        cpu.setdefault(name, []).append(report["cpu"])
        late[name] = late.get(name, 0) + report["late"]

    def turn() -> None:
        once("quiet", "nothing")
        once("capture", "capture")
        once("burn", "burn", statistics.median(cpu["capture"]))
        once("nice", "capture", nice=19)
        once("smaps", "smaps")

    benchmark.pedantic(turn, rounds=rounds, iterations=1)
    assert server.ask("DBSIZE") == f":{redis.KEYS}"

    def note(name: str) -> str:
        behind = f"; {late[name]} began late" if late.get(name) else ""
        return f"{statistics.median(cpu[name]):.2f} s of processor time each{behind}"

    quiet = p99["quiet"]
    who = f"{redis.CLIENTS} clients and {len(farm.pids)} others on {redis.processors()} processors"
    table.add("p99 of a busy Redis, undisturbed", quiet, unit="ms", note=who)
    rows = {
        "capture": "p99 of Redis, the host captured once a second ÷ undisturbed",
        "burn": "p99 of Redis, as much processor time burnt ÷ undisturbed",
        "nice": "p99 of Redis, captured at nice 19 ÷ undisturbed",
        "smaps": "p99 of Redis, smaps of all read once a second ÷ undisturbed",
    }
    for name, text in rows.items():
        table.add(text, ratios(p99[name], quiet), note=note(name))
    table.add(
        "p99 of Redis, captured ÷ as much processor time burnt",
        ratios(p99["capture"], p99["burn"]),
        target=1.25,
        bound=3,
        note="1: no harm but the stolen time",
    )
