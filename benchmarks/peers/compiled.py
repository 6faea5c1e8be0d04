"""C sources of this directory, compiled when first asked for."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@cache
def _directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="osmosis-bench-"))


@cache
def compiled(name: str, *, library: bool) -> Path:
    """Compile ``name.c``; the path of the program or shared library. RuntimeError without cc."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        msg = "no C compiler: the bare reader and the farm need one"
        raise RuntimeError(msg)
    out = _directory() / (f"{name}.so" if library else name)
    shape = ["-shared", "-fPIC"] if library else []
    command = [compiler, "-O2", "-Wall", *shape, "-o", str(out), str(HERE / f"{name}.c")]
    subprocess.run(command, check=True)
    return out


def remove() -> None:
    """Remove what was compiled."""
    if _directory.cache_info().currsize:
        shutil.rmtree(_directory(), ignore_errors=True)
