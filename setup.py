"""Build the extensions. All metadata lives in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# FASTPROC_DEBUG=1 turns the bounds checks back on and writes annotated HTML.
# FASTPROC_SANITIZE=address,undefined instruments the C code as well.
DEBUG = os.environ.get("FASTPROC_DEBUG") == "1"
SANITIZE = os.environ.get("FASTPROC_SANITIZE", "")

compile_args = ["-O1", "-g"] if DEBUG else ["-O3"]
link_args = []
if SANITIZE:
    compile_args += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer"]
    link_args += [f"-fsanitize={SANITIZE}"]

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"_fastproc.{path.stem}",
                [str(path)],
                extra_compile_args=compile_args,
                extra_link_args=link_args,
            )
            for path in sorted(Path("src/_fastproc").glob("*.pyx"))
        ],
        include_path=["src"],
        nthreads=os.cpu_count(),
        annotate=DEBUG,
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "initializedcheck": DEBUG,
            "wraparound": False,
            "cdivision": True,
            "autotestdict": False,
            "embedsignature": True,
            "freethreading_compatible": True,
        },
    ),
    options={"build_ext": {"parallel": os.cpu_count()}},
)
