"""What tests may ask of the machine: live tests skip with the reason where it gives too little.

``OSMOSIS_LIVE=1`` (CI, as root) makes every such skip a failure, so that nothing is left out
without notice.
"""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

CAP_SYS_ADMIN, CAP_SYS_PTRACE = 21, 19
REQUIRED = os.environ.get("OSMOSIS_LIVE") == "1"

sys.path.insert(0, str(Path(__file__).parent / "live"))  # children.py, for every live test
sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks.evaluation


# A loaded machine is not a slow function; an ordinary user may not own the working tree.
STORED = {} if os.access(Path(__file__).parents[1], os.W_OK) else {"database": None}
settings.register_profile("osmosis", deadline=None, **STORED)
settings.load_profile("osmosis")


def capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def missing(needs_root: bool) -> str:
    """Why live tests cannot run here; empty if they can."""
    if not Path("/proc/self/ns/user").exists():
        return "no Linux /proc here"
    if needs_root and os.geteuid() != 0:
        return "needs root"
    held = capabilities()
    wanted = {"CAP_SYS_ADMIN": CAP_SYS_ADMIN, "CAP_SYS_PTRACE": CAP_SYS_PTRACE}
    lacking = [name for name, bit in wanted.items() if not held >> bit & 1]
    return f"needs {' and '.join(lacking)}" if needs_root and lacking else ""


def skip(reason: str) -> None:
    """Skip this test; fail it where live tests are required."""
    if REQUIRED:
        pytest.fail(f"OSMOSIS_LIVE=1, but: {reason}", pytrace=False)
    pytest.skip(reason)


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("live")
    if marker is None:
        return
    reason = missing(needs_root=marker.kwargs.get("root", True))
    if reason:
        skip(reason)


@pytest.fixture(scope="session")
def need():
    """``need(condition, reason)``: skip, or fail where live tests are required."""

    def need(condition: object, reason: str) -> None:
        if not condition:
            skip(reason)

    return need
