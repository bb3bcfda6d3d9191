"""Write the golden vectors that are missing: `.venv/bin/python -m tests.unit.golden.make`.

With no argument: examples of material.py that no folder has go into the newest folder. With `v2`: a new folder, with
all examples as this version writes them; do that once for each version that is released and differs on the wire or on
disk. A vector that is there is never written anew.
"""

import sys
import tempfile
from pathlib import Path

from meshd.plan import names
from meshd.shell.journal import Journal
from meshd.state.deeds import deed_id
from meshd.state.store import Store
from meshd.wire import keys
from meshd.wire.codec import encode_item, encode_message
from tests.unit.golden import material

HERE = Path(__file__).parent
SORTS = ("items", "local-items", "messages", "datagrams", "disk", "derived")
"""Files of a folder: lines of a name and what it stands for, in hex."""


def folders() -> list[Path]:
    """The versions, oldest first."""
    return sorted((path for path in HERE.glob("v*") if path.is_dir()), key=lambda path: int(path.name[1:]))


def read(folder: Path, sort: str) -> dict[str, bytes]:
    """The vectors of one file."""
    path = folder / f"{sort}.hex"
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: bytes.fromhex(text) for name, _, text in (line.partition(" ") for line in lines)}


def derived() -> dict[str, bytes]:
    """What hosts of all versions must work out alike, or the next version's daemon must recognise in the kernel."""
    store = Store(keys.cluster_secret(material.KEY))
    for name in material.AT_LEAST:
        store.merge(material.ITEMS[name])
    hosts, sessions = (material.A, material.B), (material.SESSION, material.SESSION[::-1])
    streams = keys.stream_keys(material.KEY, hosts, sessions, (material.A, material.B))
    return {
        "cluster-secret": keys.cluster_secret(material.KEY),
        "data-key": keys.data_key(material.KEY, material.SESSION, material.A),
        "hello-key": keys.hello_key(material.KEY, material.A[:8]),
        "stream-keys": b"".join(streams),
        "digest": store.digest,
        "bucket-hashes": store.digests.hashes(4),
        "deed-id": deed_id(material.DEED),
        "overlay-bridge-name": names.overlay_bridge(material.NET).encode(),
        "bridge-name": names.bridge(material.NET).encode(),
        "vxlan-name": names.vxlan(material.NET).encode(),
        "veth-name": names.veth(material.END).encode(),
        "gateway-mac": names.gateway_mac(material.NET),
        "alias": names.alias(names.cluster_mark(material.A), material.NET, material.END).encode(),
        "endpoint-mac": names.endpoint_mac(material.END),
    }


def disk() -> dict[str, bytes]:
    """A journal of two records, and the snapshot that takes its place."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        journal.load()
        everything = [*material.ITEMS.values(), *material.LOCAL_ITEMS.values()]
        journal.append(everything)
        journal.append([material.FORGOTTEN])
        written = (Path(folder) / "journal").read_bytes()
        journal.compact(everything)
        journal.close()
        return {"journal": written, "snapshot": (Path(folder) / "snapshot").read_bytes()}


def datagrams() -> dict[str, bytes]:
    """What A sends to B, and to whom it does not know."""
    here = material.sealer(material.A, material.SESSION)
    return {"data": here.seal(material.B, material.PLAINTEXT), "hello": here.hello(0.0)}


def vectors(sort: str) -> dict[str, bytes]:
    """All examples of one file, as this version writes them."""
    match sort:
        case "items":
            return {name: encode_item(item) for name, item in material.ITEMS.items()}
        case "local-items":
            return {name: encode_item(item) for name, item in material.LOCAL_ITEMS.items()}
        case "messages":
            return {name: encode_message(message) for name, message in material.MESSAGES.items()}
        case "datagrams":
            return datagrams()
        case "disk":
            return disk()
        case "derived":
            return derived()
    raise ValueError(sort)


def main(arguments: list[str]) -> None:
    """Write what is missing."""
    folder = HERE / arguments[0] if arguments else folders()[-1]
    folder.mkdir(exist_ok=True)
    for sort in SORTS:
        there = {} if arguments else {name for one in folders() for name in read(one, sort)}
        with (folder / f"{sort}.hex").open("a") as file:
            for name, vector in vectors(sort).items():
                if name not in there and name not in read(folder, sort):
                    file.write(f"{name} {vector.hex()}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
