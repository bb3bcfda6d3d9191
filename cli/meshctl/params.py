"""What the values on a command line must look like. Syntax only: whether a network has room for an address is the
daemon's to say.
"""

import re
from typing import TYPE_CHECKING, Any

import click

IFNAME_BYTES = 15  # IFNAMSIZ - 1
HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})")
MAC_ADDRESS = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
PUBLISH = re.compile(
    r"((\[[0-9a-fA-F:.]+\]|[0-9.]+):)?[0-9]{1,5}(-[0-9]{1,5})?:[0-9]{1,5}(-[0-9]{1,5})?(/(tcp|udp|sctp))?"
)
LENGTH_OF_TIME = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smh]?)")
UNITS_S = {"s": 1, "m": 60, "h": 3600}
ON_THE_LAN = ("macvlan", "ipvlan")
DRIVERS = ("overlay", "bridge", *ON_THE_LAN)


if TYPE_CHECKING:  # a generic class only since click 8.4
    _Text = click.ParamType[str]
    _Pair = click.ParamType[tuple[str, str]]
    _Number = click.ParamType[float]
else:
    _Text = _Pair = _Number = click.ParamType


def text(
    kind: "click.ParamType[Any]", value: str, param: click.Parameter | None, ctx: click.Context | None
) -> str:
    """Return ``value``; wrong usage where its bytes are no text: the daemon's JSON could not carry it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        kind.fail(f"{value!a} is not UTF-8 text", param, ctx)
    return value


class Word(_Text):
    """A name: not empty, since an empty path segment is another route."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return ``value``; wrong usage where it is empty."""
        if not value:
            self.fail("must not be empty", param, ctx)
        return text(self, str(value), param, ctx)


class Folder(click.Path):
    """A folder's path. An empty one, which is mostly an empty variable in a script, is not the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; wrong usage where it is empty."""
        if value == "":
            self.fail("must not be empty", param, ctx)
        return super().convert(value, param, ctx)


class HostName(_Text):
    """A host's name, as the daemon's configuration takes it."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return ``value``; wrong usage where it is no host name."""
        if not HOST_NAME.fullmatch(value):
            self.fail(f"{value!r} is not a host name: letters, digits, - and ., at most 63", param, ctx)
        return str(value)


class Ip(_Text):
    """An IPv4 or IPv6 address; returned in its shortest form."""

    name = "ip"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the address; wrong usage where it is none."""
        import ipaddress

        try:
            ip = ipaddress.ip_address(value)
        except ValueError:
            self.fail(f"{value!r} is not an IPv4 or IPv6 address", param, ctx)
        if ip.version == 6 and ip.ipv4_mapped:
            self.fail(f"{value!r} is an IPv4 address in IPv6's form: write {ip.ipv4_mapped}", param, ctx)
        return str(ip)


class Cidr(_Text):
    """A prefix without host bits; returned in its shortest form."""

    name = "cidr"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the prefix; wrong usage where it is none, with the one that was probably meant."""
        import ipaddress

        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            self.fail(f"{value!r} is not ADDRESS/LENGTH, e.g. 10.1.0.0/20", param, ctx)
        if "/" not in value:
            self.fail(
                f"{value!r} has no length, e.g. {value}/{20 if network.version == 4 else 64}", param, ctx
            )
        if str(network.network_address) != str(ipaddress.ip_address(value.partition("/")[0])):
            self.fail(f"{value!r} has host bits set; its network is {network}", param, ctx)
        return str(network)


class Mac(_Text):
    """A unicast Ethernet address; returned in lower case."""

    name = "mac"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the address; wrong usage where it is none, or a group's or nobody's."""
        if not MAC_ADDRESS.fullmatch(value):
            self.fail(f"{value!r} is not an Ethernet address, e.g. 02:42:0a:01:00:05", param, ctx)
        mac = str(value).lower()
        if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
            self.fail(f"{value!r} is not an interface's address: it is a group's or all zero", param, ctx)
        return mac


class Ifname(_Text):
    """An interface's name, as the kernel takes it (dev_valid_name)."""

    name = "ifname"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name; wrong usage where the kernel would refuse it."""
        bad = any(c in "/:%" or c.isspace() or not c.isprintable() for c in value)
        if bad or value in ("", ".", "..", "lo") or len(value.encode()) > IFNAME_BYTES:
            self.fail(f"{value!r} cannot be an interface's name: 1 to 15 bytes, no /, : or space", param, ctx)
        return str(value)


class Duration(_Number):
    """A time: 60s, 5m, 1h, or seconds as a bare number; returned in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds; wrong usage where it is no time."""
        found = LENGTH_OF_TIME.fullmatch(str(value))
        if not found:
            self.fail(f"{value!r} is not a time, e.g. 60s, 5m or 1h", param, ctx)
        return float(found[1]) * UNITS_S[found[2] or "s"]


class Publish(_Text):
    """``[IP:]HOSTPORT:PORT[/PROTO]``, each port also a range. Whether the host has IP and the ports is the daemon's to
    say.
    """

    name = "publish"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return ``value``; wrong usage where it is not of that form."""
        if not PUBLISH.fullmatch(value):
            self.fail(
                f"{value!r} is not [IP:]HOSTPORT:PORT[/tcp|udp|sctp], e.g. 8080:80 or [2001:db8::1]:53:53/udp",
                param,
                ctx,
            )
        return str(value)


class KeyValue(_Pair):
    """``KEY=VALUE``, or ``KEY`` alone with an empty value, as Docker takes ``--opt encrypted``."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return key and value; wrong usage without a key."""
        if isinstance(value, tuple):
            return value
        key, _, rest = value.partition("=")
        if not key:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return text(self, key, param, ctx), text(self, rest, param, ctx)


WORD = Word()
HOST = HostName()
IP = Ip()
CIDR = Cidr()
MAC = Mac()
IFNAME = Ifname()
DURATION = Duration()
KEY_VALUE = KeyValue()
PUBLICATION = Publish()
PORT = click.IntRange(1, 65535)
