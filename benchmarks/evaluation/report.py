"""Compare the snapshots of an evaluation: ``python -m benchmarks.evaluation.report DIR``.

Needs neither root nor a container runtime. Prints the comparison, and why a mechanism is not in
it; without DIR, of the snapshots that are saved in the repository.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import osmosis
from benchmarks.evaluation.mechanisms import MECHANISMS
from benchmarks.evaluation.saved import SAVED, models, reasons

__all__ = ["main", "report"]


def report(folder: Path) -> int:
    """Print what the snapshots in *folder* say; 1 if there are none."""
    found = models(folder)
    why = reasons(folder)
    for name in MECHANISMS:
        if name not in found:
            print(f"{name:22} not compared: {why.get(name, 'there is no snapshot')}")
    if not found:
        print(f"no snapshot in {folder}; make evaluation-from-snapshots compares the saved ones")
        return 1
    print(osmosis.compare(found, subject="role:db"))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Report on the folder that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=SAVED, metavar="DIR")
    return report(parser.parse_args(argv).folder)


if __name__ == "__main__":
    sys.exit(main())
