"""What earlier versions wrote is read by this one: to the wire and to disk, byte for byte as they did.

One folder for each version whose bytes differ, v1 the first; material.py says what the vectors mean. A failure of a
`what_..._wrote` test means that hosts of that version and of this one would not understand each other, or that an
upgrade loses state: mend the code, not the vector. How the next version's are added: make.py.
"""

from collections.abc import Callable

import pytest

from meshd.messages import MESSAGE_TYPES
from meshd.model import DEAD_BODY, LIVE_BODY, Item, Key, Kind
from meshd.shell.journal import Journal
from meshd.wire.codec import decode_item, decode_messages, join
from meshd.wire.opened import Data, Greeting
from tests.unit.golden import make, material

FOLDERS = make.folders()
HOW = "add an example to tests/unit/golden/material.py, then: .venv/bin/python -m tests.unit.golden.make"


def cases(*sorts: str) -> list[object]:
    return [
        pytest.param(sort, name, vector, id=f"{folder.name}-{name}")
        for folder in FOLDERS
        for sort in sorts
        for name, vector in make.read(folder, sort).items()
    ]


READ: dict[str, Callable[[bytes], object]] = {
    "items": decode_item,
    "local-items": lambda vector: decode_item(vector, local=True),
    "messages": lambda vector: decode_messages(join([vector]))[0],
}
MEANT: dict[str, dict[str, object]] = {
    "items": dict(material.ITEMS),
    "local-items": dict(material.LOCAL_ITEMS),
    "messages": dict(material.MESSAGES),
}


@pytest.mark.parametrize(("sort", "name", "vector"), cases(*READ))
def test_what_a_host_of_that_version_wrote_is_read_as_it_was_meant(
    sort: str, name: str, vector: bytes
) -> None:
    assert READ[sort](vector) == MEANT[sort][name]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_a_host_of_that_version_sent_is_opened(folder) -> None:
    vectors, there = make.read(folder, "datagrams"), material.sealer(material.B, material.B[::-1])
    source = material.FACTS
    assert there.open(vectors["data"], source, 0.0) == Data(material.A, material.PLAINTEXT)
    greeting = there.open(vectors["hello"], source, 0.0)
    assert isinstance(greeting, Greeting)
    assert (greeting.host, greeting.session) == (material.A, material.SESSION)
    assert greeting.incarnation == 1_790_000_000_000


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("file", ["journal", "snapshot"])
def test_what_a_host_of_that_version_left_on_disk_is_loaded(folder, file, tmp_path) -> None:
    (tmp_path / file).write_bytes(make.read(folder, "disk")[file])
    journal = Journal(tmp_path)
    try:
        entries = journal.load()
    finally:
        journal.close()
    assert journal.notes == []
    meant = {item.key: item for item in [*material.ITEMS.values(), *material.LOCAL_ITEMS.values()]}
    found = [entry for entry in entries if isinstance(entry, Item)]
    assert [item for item in found if item != meant[item.key]] == []
    assert {material.ITEMS[name].key for name in material.AT_LEAST} <= {item.key for item in found}
    forgotten = [entry for entry in entries if isinstance(entry, Key)]
    assert forgotten == ([material.FORGOTTEN] if file == "journal" else [])


@pytest.mark.parametrize(("sort", "name", "vector"), cases("derived"))
def test_what_all_versions_must_work_out_alike_is_the_same(sort: str, name: str, vector: bytes) -> None:
    assert make.derived()[name] == vector


def test_there_is_an_example_of_every_message_and_kind() -> None:
    messages = {type(message) for message in material.MESSAGES.values()}
    assert [shape.__name__ for shape in MESSAGE_TYPES if shape not in messages] == [], HOW
    items = {(item.kind, item.dead) for item in [*material.ITEMS.values(), *material.LOCAL_ITEMS.values()]}
    lacking = [Kind(kind).name for kind in LIVE_BODY if (kind, False) not in items]
    lacking += [f"{Kind(kind).name}, dead" for kind in DEAD_BODY if (kind, True) not in items]
    assert lacking == [], HOW


@pytest.mark.parametrize("sort", make.SORTS)
def test_every_example_has_a_vector(sort: str) -> None:
    there = {name for folder in FOLDERS for name in make.read(folder, sort)}
    assert sorted({*make.vectors(sort)} - there) == [], HOW
