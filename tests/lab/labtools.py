"""What the lab's tests share: an endpoint's namespace as a value, pings over every family."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meshctl.labhost import Host
from meshctl.ping import Ping


@dataclass(frozen=True)
class Attached:
    """A namespace with an endpoint. ``v4``, ``v6``: its first address of the family, or ""."""

    host: Host
    ns: str
    endpoint: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.endpoint["name"])

    @property
    def mac(self) -> str:
        return str(self.endpoint["mac"])

    @property
    def devices(self) -> str:
        """What the names of its network's devices end in (meshd/plan/names.py)."""
        return str(self.host.json("network", "inspect", self.endpoint["network"])["id"][:8])

    @property
    def path(self) -> str:
        return f"/run/netns/{self.ns}"

    @property
    def ips(self) -> list[str]:
        return [ip.partition("/")[0] for ip in self.endpoint["ips"]]

    @property
    def v4(self) -> str:
        return next((ip for ip in self.ips if ":" not in ip), "")

    @property
    def v6(self) -> str:
        return next((ip for ip in self.ips if ":" in ip), "")


Attach = Callable[..., Attached]
"""``attach(host, network, *flags)``: see conftest.py."""

NewNetwork = Callable[..., str]
"""``new_network(*flags, host=None, name="")``: see conftest.py."""


def no_ping_is_lost(pairs: list[tuple[Attached, Attached]], count: int = 3) -> None:
    """Ping over every family of each pair at once; the first request counts like every other."""
    running = [(a, b, ip, Ping(a.ns, ip, count=count)) for a, b in pairs for ip in b.ips]
    results = [(a.name, b.name, ip, ping.result()) for a, b, ip, ping in running]
    assert [(a, b, ip, r.lost, r.sent) for a, b, ip, r in results if r.lost] == []
    assert all(r.sent == count for *_, r in results)
