"""Who may import whom: the architecture as a table, held exactly.

Two stairs meet at the snapshot. Seeing: ``_fastproc <- capture -> snapshot``. Asking:
``snapshot -> relations -> graph -> query -> model -> formats, cli``. A module may import from
its own room and from the rooms that its room's row names.
"""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "osmosis"

# What a room imports beside itself: modules by dotted name below osmosis, or "_fastproc.x".
ROOMS = {
    "errors": set(),
    "schema": set(),
    "snapshot": {"errors", "schema", "archive", "relations.build", "model"},
    "archive": {"errors", "schema", "snapshot"},
    "capture": {"errors", "schema", "snapshot", "_fastproc"},
    "graph": {"errors"},
    "relations": {"errors", "schema", "snapshot", "graph"},
    "query": {"errors", "graph", "_fastproc.reach"},
    "model": {"errors", "graph", "query"},
    "formats": {"errors", "graph", "query", "model"},
    "cli": {
        "errors",
        "schema",
        "snapshot",
        "archive",
        "capture",
        "graph",
        "query",
        "model",
        "formats",
    },
    "__init__": {"errors", "snapshot", "archive", "capture", "graph", "query", "model", "formats"},
    "__main__": {"cli"},
}
# Imports inside a function. The first two are the one place where the stairs meet again:
# Snapshot.model and Snapshot.save are promised names, and nothing below knows them.
LATE = {
    "snapshot": {"archive", "relations.build", "model"},
}
# Each of these has its rooms and may enter no other.
OUTSIDE = {
    "igraph": {"query", "formats", "graph"},
    "scipy": {"graph", "query", "model", "formats"},
    "rich": {"cli"},
    "typer": {"cli"},
    "cairosvg": {"formats"},
}
FILES = sorted(SRC.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return parts[0]


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports name the module in full"
        module = node.module or ""
        return {f"{module}.{a.name}" for a in node.names} | {module}
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    return set()


def for_types_only(tree: ast.Module) -> set[ast.AST]:
    """Nodes below ``if TYPE_CHECKING``: a name for the reader, not an import."""
    return {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }


def imports(path: Path, *, late: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    skipped = for_types_only(tree)
    inside = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if (node in inside) == late and node not in skipped:
            names |= imported(node)
    return names


def rooms_of(names: set[str]) -> set[str]:
    """Rooms of osmosis among dotted names, and _fastproc modules."""
    out = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "osmosis" and len(parts) > 1:
            out.add(parts[1])
        elif parts[0] == "_fastproc":
            out.add("_fastproc" if len(parts) < 2 else f"_fastproc.{parts[1]}")
    return out


def allowed(name: str, table: set[str]) -> bool:
    return any(name == entry or name.startswith(entry + ".") for entry in table) or (
        name in {entry.split(".")[0] for entry in table if not entry.startswith("_")}
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_run_one_way(path):
    here = room(path)
    wanted = rooms_of(imports(path, late=False)) - {here}
    wrong = {name for name in wanted if not allowed(name, ROOMS[here] - LATE.get(here, set()))}
    if "_fastproc" in wrong and any(e.startswith("_fastproc") for e in ROOMS[here]):
        wrong.discard("_fastproc")  # `from _fastproc import x`: x itself is judged
    assert not wrong, f"{here} may not import {sorted(wrong)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_nothing_is_imported_late_but_what_the_table_says(path):
    found = rooms_of(imports(path, late=True)) - {room(path)}
    if room(path) == "cli":
        return  # a command imports what it needs when it runs, so that --help is quick
    assert {f for f in found if not allowed(f, LATE.get(room(path), set()))} == set()


def test_every_room_is_in_the_table_and_no_row_is_dead():
    assert {room(path) for path in FILES} == set(ROOMS)
    for here, table in ROOMS.items():
        names: set[str] = set()
        for path in FILES:
            if room(path) == here:
                names |= imports(path, late=False) | imports(path, late=True)
        used = rooms_of(names)
        dotted = {n.removeprefix("osmosis.") for n in names}
        dead = {e for e in table if e not in used and e not in dotted}
        assert not dead, f"{here} does not import {sorted(dead)}: take it off the table"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_libraries_stay_in_their_rooms(path):
    tops = {n.split(".")[0] for late in (False, True) for n in imports(path, late=late)}
    for library, rooms in OUTSIDE.items():
        assert library not in tops or room(path) in rooms, f"{library} in {room(path)}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_the_asking_side_never_opens_proc(path):
    if room(path) in {"relations", "graph", "query", "model", "snapshot"}:
        source = path.read_text()
        tree = ast.parse(source)
        calls = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert "open" not in calls
        tops = {n.split(".")[0] for late in (False, True) for n in imports(path, late=late)}
        assert not tops & {"subprocess", "socket", "ctypes", "mmap"}


def test_nothing_from_graph_on_knows_linux():
    for path in FILES:
        if room(path) in {"graph", "query", "model"}:
            assert "/proc" not in path.read_text(), f"{path.name} speaks of /proc"


# Longer than 600 lines, and why.
LONG = {
    "model.py": 800,  # the face: thin methods, most of it docstrings
    "schema.py": 800,  # a table of all columns, read by looking things up
}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_modules_stay_small(path):
    name = str(path.relative_to(SRC))
    lines = len(path.read_text().splitlines())
    assert lines <= LONG.get(name, 620), f"{name} has {lines} lines: it wants to be two"
