"""The sessions that documents show are what is printed now."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
tool = runpy.run_path(str(ROOT / "tools" / "sessions.py"))


@pytest.mark.parametrize("document", ["README.md"])
def test_documents_show_what_is_printed(document):
    shown = (ROOT / document).read_text()
    assert tool["rerun"](shown, ROOT) == shown, f"python tools/sessions.py --write {document}"


def test_what_is_not_printed_is_found():
    shown = "<!-- session: . -->\n```pycon\n>>> 1 + 1\n3\n>>> print('a')\na\n```\n"
    assert tool["rerun"](shown, ROOT) == shown.replace("3\n", "2\n")


def test_a_document_without_a_session_is_refused():
    with pytest.raises(SystemExit, match="no session"):
        tool["rerun"]("```pycon\n>>> 1\n1\n```\n", ROOT)
