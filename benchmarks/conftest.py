"""Fixtures of the benchmarks, and the table at the end.

Options: ``--record`` writes the table into docs/performance.md; ``--small`` leaves out all that
wants more than 1000 processes; ``--huge`` adds 20 000 synthetic ones; ``--profile`` adds where
the time of a capture goes (it needs perf).
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import osmosis
from benchmarks import synthetic
from benchmarks.farm import Farm, Shape
from benchmarks.peers import compiled
from benchmarks.table import Table
from osmosis.snapshot import Snapshot

TABLE = Table()
ROUNDS = 7
FEWEST = 3
BUDGET = 45.0  # seconds, of one comparison


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write docs/performance.md")
    parser.addoption("--small", action="store_true", help="at most 1000 processes")
    parser.addoption("--huge", action="store_true", help="20 000 synthetic processes too")
    parser.addoption("--profile", action="store_true", help="where the time of a capture goes")


def pytest_configure(config: pytest.Config) -> None:
    config.option.benchmark_quiet = True  # one table, ours
    config.option.benchmark_disable_gc = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that wants one farm after another: the large ones take long to start."""

    def farm(item: pytest.Item) -> tuple[str, int]:
        call = getattr(item, "callspec", None)
        by_size = item.path.name == "test_bench_host.py" and call is not None
        return item.path.name, call.params["n"] if by_size else 0

    items.sort(key=farm)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if TABLE.lines:
        terminalreporter.write_line("")
        terminalreporter.write_line(TABLE.markdown())
        if config.getoption("--record"):
            TABLE.write()


def pytest_sessionfinish() -> None:
    compiled.remove()


@pytest.fixture(scope="session")
def table() -> Table:
    return TABLE


@pytest.fixture(scope="session")
def farms() -> Iterator[Callable[[Shape], Farm]]:
    """``farms(shape)``: a running farm of that shape; the one before is stopped first."""
    if os.geteuid() != 0:
        pytest.skip("frame numbers need root")
    running: list[Farm] = []

    def farm(shape: Shape) -> Farm:
        if running and running[0].shape == shape:
            return running[0]
        if running:
            running.pop().stop()
        one = Farm(shape)
        try:
            one.__enter__()
        except MemoryError as exc:
            pytest.skip(str(exc))
        running.append(one)
        return one

    yield farm
    for one in running:
        one.stop()


@pytest.fixture(scope="session")
def room() -> Iterator[Path]:
    """A directory for snapshots, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="osmosis-bench-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def made() -> Callable[[int], Snapshot]:
    """``made(n)``: a synthetic snapshot, made once."""
    kept: dict[int, Snapshot] = {}

    def snapshot(n: int) -> Snapshot:
        if n not in kept:
            kept[n] = synthetic.snapshot(n)
        return kept[n]

    return snapshot


@pytest.fixture
def small(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--small"))


@pytest.fixture
def beside(benchmark: Any) -> Callable[..., tuple[Any, dict[str, list[float]]]]:
    """``beside(ours, {"peer": f}, rounds=7)``: run by turns, round by round.

    Returns our last answer, and the seconds of each: by *clock*, CPU time of all our threads
    unless told otherwise. ``answers`` receives the peers' last answers. Where *rounds* would take
    more than ``budget`` seconds there are fewer, but three.
    """

    def run(
        ours: Callable[[], Any],
        peers: Mapping[str, Callable[[], Any]],
        *,
        rounds: int = ROUNDS,
        clock: Callable[[], float] = time.process_time,
        answers: dict[str, Any] | None = None,
        budget: float = BUDGET,
    ) -> tuple[Any, dict[str, list[float]]]:
        seconds: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}

        def timed(name: str, work: Callable[[], Any]) -> Any:
            gc.collect()
            began = clock()
            answer = work()
            seconds[name].append(clock() - began)
            return answer

        def turn() -> Any:
            for name, peer in peers.items():
                answer = timed(name, peer)
                if answers is not None:
                    answers[name] = answer
            return timed("ours", ours)

        def turns() -> Any:
            began = time.monotonic()
            answer = turn()
            fit = int(budget / (time.monotonic() - began))
            for _ in range(min(rounds, max(FEWEST, fit)) - 1):
                answer = turn()
            return answer

        answer = benchmark.pedantic(turns, rounds=1, iterations=1)
        return answer, seconds

    return run


def ratios(top: list[float], bottom: list[float]) -> list[float]:
    """Ratio of each round: what disturbs the machine disturbs both."""
    return [a / b for a, b in zip(top, bottom, strict=True)]


def captured(farm: Farm, **options: Any) -> Snapshot:
    return osmosis.capture(farm.pids, **options)
