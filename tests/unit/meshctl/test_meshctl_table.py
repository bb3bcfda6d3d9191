"""Tables: columns start at one place in every line, and nothing unprintable comes through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshctl.table import pairs, printable, table

CELL = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.lists(st.text(max_size=5), max_size=3)
)


@pytest.mark.parametrize(
    "value, shown",
    [(None, "-"), ("", "-"), ([], "-"), (True, "yes"), (False, "no"), (0, "0"), (["a", "b"], "a,b"), ({"k": 1}, "k=1"),
     ("ä", "ä"), ("\x1b", "\\x1b"), ("\u202e", "\\u202e"), ({}, "-")],
)  # fmt: skip
def test_values_are_shown_for_people(value, shown):
    assert printable(value) == shown


@given(st.lists(st.tuples(CELL, CELL, CELL), max_size=5))
def test_columns_start_where_their_heads_do(rows):
    lines = table(("A", "B", "C"), rows)
    assert len(lines) == len(rows) + 1
    second, third = lines[0].index("B"), lines[0].index("C")
    for line, row in zip(lines[1:], rows, strict=True):
        assert line.isprintable()
        assert line[second:].startswith(printable(row[1]).rstrip())
        assert line[third:] == printable(row[2]).rstrip()


def test_a_table_without_rows_is_its_head():
    assert table(("A", "BC"), []) == ["A  BC"]


def test_pairs_are_aligned():
    assert pairs([("a", 1), ("long", [])]) == ["a:    1", "long: -"]
