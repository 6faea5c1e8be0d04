"""Compare the hand-written stubs of the extensions with what was built (mypy's stubtest)."""

import subprocess
import sys
import tempfile
from pathlib import Path

modules = sorted(f"_fastproc.{p.stem}" for p in Path("src/_fastproc").glob("*.pyx"))
missing = [m for m in modules if not Path("src", *m.split(".")).with_suffix(".pyi").exists()]
if missing:
    sys.exit(f"no stub for {', '.join(missing)}")
# Cython adds these to every module and class.
ignored = r""".*\.__(pyx_capi|test|reduce_cython|setstate_cython|reduce|setstate)__
"""
with tempfile.NamedTemporaryFile("w", suffix=".txt") as allow:
    allow.write(ignored)
    allow.flush()
    sys.exit(
        subprocess.call(
            [
                sys.executable,
                "-m",
                "mypy.stubtest",
                "--ignore-positional-only",
                "--ignore-unused-allowlist",
                "--allowlist",
                allow.name,
                *modules,
            ]
        )
    )
