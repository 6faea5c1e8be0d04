"""Tables into a pipe are those that a terminal of that width shows."""

import io
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from osmosis.cli import terminal

NAMES = st.text(max_size=12) | st.sampled_from(["", " ", "日本", "a" * 300, "\x1b[1m", "é", "x y "])
TABLES = st.integers(1, 4).flatmap(
    lambda n: st.tuples(
        st.lists(st.tuples(st.sampled_from(["A", "HEAD"]), st.sampled_from(["left", "right"])),
                 min_size=n, max_size=n),
        st.lists(st.lists(NAMES, min_size=n, max_size=n), max_size=5),
    )
)  # fmt: skip


@given(TABLES)
def test_a_pipe_gets_what_a_wide_terminal_shows(case):
    columns, rows = case
    shown = []
    for wide in (True, False):
        out = io.StringIO()
        with (
            mock.patch("sys.stdout", out),
            mock.patch.object(terminal, "_unlimited", lambda wide=wide: wide),
            mock.patch.dict("os.environ", {"COLUMNS": "5000"}),
        ):
            terminal.print_table(columns, rows)
        shown.append(out.getvalue())
    assert shown[0] == shown[1]
