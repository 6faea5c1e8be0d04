"""How much memory a program of a benchmark had at its most."""

from pathlib import Path

__all__ = ["high_water"]


def high_water() -> float:
    """MiB that were resident at their most since this program began (VmHWM).

    Not ru_maxrss: that begins with what the program before execve had, which is pytest itself.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
