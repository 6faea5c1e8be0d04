"""The promised names are there, and nothing else is public by accident."""

import inspect

import pytest

import osmosis
from osmosis.model import Model

PROMISED = [
    "capture",
    "load",
    "read_csv",
    "compare",
    "diff",
    "Snapshot",
    "OsmosisError",
    "SnapshotError",
    "FormatError",
    "SelectorError",
    "ProcessError",
]

# name: keyword-only parameters, in order, with their defaults
SIGNATURES = {
    "bfs": "edges direction access depth kinds types",
    "shared_resources": "types access own_access potential",
    "shared_spaces": "types",
    "common_resources": "types access",
    "common_spaces": "types",
    "controllers": "verbs effective",
    "controls": "verbs effective",
    "services": "depth",
    "tcb": "access own_access types verbs services potential depth through",
    "impact_boundary": "access own_access types verbs services potential depth through",
    "shares": "types access",
    "fr": "types kernel",
    "control_matrix": "effective",
    "sharing_matrix": "types access own_access",
    "tcb_matrix": "access own_access types verbs services potential depth through",
}
POSITIONAL = {
    "may": "x verb y",
    "isolation": "x y",
    "rsi": "x y type",
    "explain": "x y",
    "common_ancestors": "x y",
    "shared_pages": "rows cols",
    "rsi_matrix": "type rows cols",
    "isolation_matrix": "layer",
    "group_by": "key",
    "expand": "pds",
    "pd": "selector",
    "find": "selector",
}
DEFAULTS = {
    "tcb": {
        "access": "W", "own_access": "ANY", "services": False, "potential": False, "depth": 1,
        "through": "any",
    },
    "shared_resources": {"access": "ANY", "own_access": "ANY", "potential": False},
    "controllers": {"verbs": None, "effective": True},
    "services": {"depth": 1},
    "fr": {"types": None, "kernel": False},
}  # fmt: skip


@pytest.mark.parametrize("name", PROMISED)
def test_a_promised_name_is_exported(name):
    assert name in osmosis.__all__
    assert hasattr(osmosis, name)


def test_all_is_what_is_public():
    modules = {n for n, v in vars(osmosis).items() if inspect.ismodule(v)}
    public = {n for n in vars(osmosis) if not n.startswith("_")} - modules
    assert public == set(osmosis.__all__)


def test_capture_is_the_function_though_a_room_has_its_name():
    import osmosis.capture.memory  # importing a room must not hide the function

    assert inspect.isfunction(osmosis.capture)


@pytest.mark.parametrize("name", SIGNATURES)
def test_keyword_only_parameters(name):
    parameters = inspect.signature(getattr(Model, name)).parameters.values()
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert keywords == SIGNATURES[name].split()


@pytest.mark.parametrize("name", POSITIONAL)
def test_positional_parameters(name):
    parameters = inspect.signature(getattr(Model, name)).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]
    assert names == POSITIONAL[name].split()


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name):
    parameters = inspect.signature(getattr(Model, name)).parameters
    assert {k: parameters[k].default for k in DEFAULTS[name]} == DEFAULTS[name]


def test_signature_of_capture():
    parameters = inspect.signature(osmosis.capture).parameters
    assert {k: p.default for k, p in parameters.items()} == {
        "pids": None, "sources": None, "frames": "classes", "threads": None, "budget_s": None,
        "progress": None, "proc": "/proc",
    }  # fmt: skip


def test_signature_of_read_csv():
    parameters = inspect.signature(osmosis.read_csv).parameters
    assert {k: p.default for k, p in parameters.items() if k != "path"} == {
        "kernel": None, "private": "copy", "strict": True,
    }  # fmt: skip
