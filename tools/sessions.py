"""Run the sessions that a document shows and compare what they print; --write puts that in.

A session is a fenced block (``console``: lines that begin with ``$ osmosis``; ``pycon``: Python
examples) below a comment that names the folder it runs in::

    <!-- session: tests/data/evaluation -->

    python tools/sessions.py [--write] README.md ...

Exits 1 if a document shows what is not printed. Needs the package with its command line.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

SESSION = re.compile(
    r"(?P<head><!-- session: (?P<folder>\S+) -->\n+)"
    r"```(?P<kind>console|pycon)\n(?P<body>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
COLUMNS = "112"


def console(body: str, folder: Path) -> str:
    """Return ``body`` with what each of its commands prints now, run in ``folder``."""
    printed = []
    for line in (line for line in body.splitlines() if line.startswith("$ ")):
        words = shlex.split(line[2:])
        if words[0] != "osmosis":
            raise SystemExit(f"a session runs osmosis, not {words[0]!r}")
        done = subprocess.run(
            [sys.executable, "-m", "osmosis", *words[1:]],
            cwd=folder,
            env={**os.environ, "COLUMNS": COLUMNS, "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        text = (done.stdout + done.stderr).rstrip()
        printed.append("\n".join([line, *(row.rstrip() for row in text.splitlines())]) + "\n")
    return "\n".join(printed)


def pycon(body: str, folder: Path) -> str:
    """Return ``body`` with what each of its Python examples prints now, run in ``folder``."""
    names: dict[str, object] = {}
    lines = []
    with contextlib.chdir(folder):
        for example in doctest.DocTestParser().get_examples(body):
            first, *rest = example.source.rstrip("\n").split("\n")
            lines += [f">>> {first}", *(f"... {line}" for line in rest)]
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(example.source, "<session>", "single"), names)  # noqa: S102
            lines += out.getvalue().splitlines()
    return "".join(f"{line}\n" for line in lines)


def rerun(text: str, root: Path) -> str:
    """Return the document ``text`` with every session as it prints now; folders are below ``root``.

    Raises SystemExit if it has none: a check without a session would always pass.
    """
    if not SESSION.search(text):
        raise SystemExit("no session in this document")
    run = {"console": console, "pycon": pycon}
    return SESSION.sub(
        lambda found: (
            f"{found['head']}```{found['kind']}\n"
            f"{run[found['kind']](found['body'], root / found['folder'])}```"
        ),
        text,
    )


def main() -> int:
    """Check, or write, each document; 1 if one shows what is not printed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("documents", nargs="+", type=Path)
    chosen = parser.parse_args()
    stale = False
    for path in chosen.documents:
        shown = path.read_text()
        printed = rerun(shown, Path.cwd())
        if chosen.write:
            path.write_text(printed)
        elif shown != printed:
            stale = True
            sys.stdout.writelines(
                difflib.unified_diff(
                    shown.splitlines(True), printed.splitlines(True), f"{path}", "printed now"
                )
            )
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
