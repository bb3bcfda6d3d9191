"""How kernel objects are called towards people: in the words of ip(8), bridge(8) and nft(8). Decides nothing."""

from meshd.model import text_ip, text_mac
from meshd.plan import elements
from meshd.plan.names import MARK
from meshd.plan.objects import Addr, FdbKey, FdbTarget, Gate, NeighKey, Nexthop, Route
from meshd.plan.ops import (
    DelAddr,
    DelElement,
    DelFdb,
    DelLink,
    DelNeigh,
    DelNexthop,
    DelRoute,
    LeaveGate,
    Op,
    OpenGate,
    PutAddr,
    PutElement,
    PutFdb,
    PutLink,
    PutNeigh,
    PutNexthop,
    PutRoute,
    RemakeLink,
    RenameLink,
    SetFirewall,
)

Named = tuple[str, str]
"""``object`` and ``what`` of a Finding; the same for an object and for every op on it."""

NFT = "nft"
FIREWALL: Named = (NFT, "tables inet meshd and bridge meshd")

FOUGHT_OVER = "another program undoes it again and again, so it is left alone for now"


def link(name: str) -> Named:
    """Name a device."""
    return "link", f"dev {name}"


def addr(value: Addr) -> Named:
    """Name an address."""
    return "addr", f"{text_ip(value.ip)}/{value.prefix} dev {value.dev}"


def route(value: Route) -> Named:
    """Name a route."""
    to = f"/{value.prefix}" if value.prefix else ""
    return "route", f"{text_ip(value.ip)}{to} dev {value.dev} src {text_ip(value.source)}"


def nexthop(id_: int) -> Named:
    """Name a nexthop or a group."""
    return "nexthop", f"id {id_}"


def nexthop_says(value: Nexthop) -> str:
    """Say where a nexthop leads."""
    if value.via is not None:
        return f"via {text_ip(value.via)} fdb"
    return f"group {'/'.join(map(str, value.group))} fdb"


def fdb(key: FdbKey) -> Named:
    """Name an FDB row."""
    to = f" dst {text_ip(key.to)}" if key.to else ""
    return "fdb", f"{text_mac(key.mac)} dev {key.dev}{to} {key.where}"


def fdb_says(target: FdbTarget) -> str:
    """Say where an FDB row leads."""
    if target.nhid is not None:
        return f"nhid {target.nhid}"
    if target.dst is not None:
        return f"dst {text_ip(target.dst)}"
    return "permanent" if target.local else "extern_learn"


def neigh(key: NeighKey) -> Named:
    """Name a neighbour."""
    return "neigh", f"{text_ip(key.ip)} dev {key.dev}"


def element(value: elements.Element) -> Named:
    """Name an element of a set or map."""
    return NFT, f"element {elements.SETS[value.set].family} {MARK} {value.set} {{ {elements.text(value)} }}"


def gate(value: Gate) -> Named:
    """Name our accepts in somebody else's chain."""
    return NFT, f"accepts for our bridges in chain {value.family} {value.table} {value.chain}"


def of(op: Op) -> Named:
    """Name what an op is about."""
    match op:
        case PutLink() | RemakeLink():
            return link(op.link.name)
        case RenameLink():
            return link(op.new)
        case DelLink():
            return link(op.name)
        case PutAddr() | DelAddr():
            return addr(op.addr)
        case PutRoute() | DelRoute():
            return route(op.route)
        case PutNexthop():
            return nexthop(op.nexthop.id)
        case DelNexthop():
            return nexthop(op.id)
        case PutFdb() | DelFdb():
            return fdb(op.key)
        case PutNeigh() | DelNeigh():
            return neigh(op.key)
        case SetFirewall():
            return FIREWALL
        case PutElement() | DelElement():
            return element(op.element)
        case OpenGate() | LeaveGate():
            return gate(op.gate)


def in_table(what: str, table: str) -> str:
    """Say something of kind "nft" of the tables of that name; it is kept as of those of the usual one."""
    return what.replace(f" {MARK}", f" {table}")


def text(named: Named, table: str = MARK) -> str:
    """Say it as one phrase, as `ip` or `bridge` would: ``fdb 02:.. dev mv01234567 self``. ``table``: names.table."""
    kind, what = named
    return f"{kind} {in_table(what, table) if kind == NFT else what}"
