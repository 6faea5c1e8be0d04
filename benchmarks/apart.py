"""This interpreter in a process of its own: what starts anew, and what memory is measured of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
}


def python(*arguments: str, stdin: str = "", codes: tuple[int, ...] = (0,)) -> str:
    """Run it with the package of this tree; return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments], input=stdin, capture_output=True, text=True, cwd=ROOT,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode in codes, done.stderr
    return done.stdout
