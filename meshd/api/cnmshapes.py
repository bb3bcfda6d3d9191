"""The JSON of Docker's plugin protocol: what dockerd posts to a NetworkDriver and an IpamDriver, and what it reads of
the answers (moby: libnetwork/drivers/remote/api, ipams/remote/api). Decides form alone. Field names are the protocol's.
Go writes null for what is empty, and newer engines send fields that are not here: those say nothing to us.
"""

from typing import Annotated, Any

import msgspec

PLUGIN_JSON = "application/vnd.docker.plugins.v1.2+json"

DockerId = Annotated[
    str,
    msgspec.Meta(
        min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.-]+\Z", description="an id of Docker's"
    ),
]
Text = Annotated[str, msgspec.Meta(max_length=255)]
Strings = Annotated[dict[Text, Text], msgspec.Meta(max_length=64)]
Labels = Annotated[dict[str, Any], msgspec.Meta(max_length=256)]


class Nothing(msgspec.Struct, frozen=True):
    """No request body is read, or nothing is answered but that it went well."""


UNCHANGED = Nothing()
"""Answered where there was nothing to do."""


class PoolData(msgspec.Struct, frozen=True):
    """IPAMData: ``Gateway`` and ``AuxAddresses`` with prefix length. ``AddressSpace``: whose addresses they are."""

    Pool: Text = ""
    Gateway: Text = ""
    AddressSpace: Text = ""
    AuxAddresses: Strings | None = None


class CreateNetwork(msgspec.Struct, frozen=True):
    """``Options``: labels of Docker's own, -o options beneath GENERIC."""

    NetworkID: DockerId
    Options: Labels | None = None
    IPv4Data: Annotated[list[PoolData], msgspec.Meta(max_length=8)] | None = None
    IPv6Data: Annotated[list[PoolData], msgspec.Meta(max_length=8)] | None = None


class OfNetwork(msgspec.Struct, frozen=True):
    """DeleteNetwork and the like."""

    NetworkID: DockerId


class Addresses(msgspec.Struct, frozen=True):
    """Addresses with prefix length; "" where nothing was decided yet."""

    Address: Text = ""
    AddressIPv6: Text = ""
    MacAddress: Text = ""


class CreateEndpoint(msgspec.Struct, frozen=True):
    """``Options``: labels of Docker's own, --driver-opt flat among them."""

    NetworkID: DockerId
    EndpointID: DockerId
    Interface: Addresses | None = None
    Options: Labels | None = None


class OfEndpoint(msgspec.Struct, frozen=True):
    """DeleteEndpoint and the like."""

    NetworkID: DockerId
    EndpointID: DockerId


class Join(msgspec.Struct, frozen=True):
    """``SandboxKey``: the namespace's path, in dockerd's own mount namespace."""

    NetworkID: DockerId
    EndpointID: DockerId
    SandboxKey: Annotated[str, msgspec.Meta(max_length=4096)] = ""


class Binding(msgspec.Struct, frozen=True):
    """One -p of a container. ``Proto``: IP's number; ``HostPort`` 0: any, else the first of those up to
    ``HostPortEnd`` that is free; ``HostIP`` "": all of this host's."""

    Proto: Annotated[int, msgspec.Meta(ge=0, le=255)]
    Port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    HostPort: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    HostPortEnd: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    HostIP: Text = ""


class External(msgspec.Struct, frozen=True):
    """ProgramExternalConnectivity."""

    NetworkID: DockerId
    EndpointID: DockerId
    Options: Labels | None = None


class RequestPool(msgspec.Struct, frozen=True):
    """``Pool``: --subnet, ``SubPool``: --ip-range, ``Options``: --ipam-opt; ``V6`` tells what a free choice is of."""

    AddressSpace: Text = ""
    Pool: Text = ""
    SubPool: Text = ""
    Options: Strings | None = None
    V6: bool = False


class ReleasePool(msgspec.Struct, frozen=True):
    """``PoolID``: as answered to RequestPool."""

    PoolID: Text


class RequestAddress(msgspec.Struct, frozen=True):
    """``Address``: the one that is wanted, or ""."""

    PoolID: Text
    Address: Text = ""
    Options: Strings | None = None


class ReleaseAddress(msgspec.Struct, frozen=True):
    """``Address``: without prefix length."""

    PoolID: Text
    Address: Text


GENERIC = "com.docker.network.generic"
IPV6 = "com.docker.network.enable_ipv6"
INTERNAL = "com.docker.network.internal"
PORTMAP = "com.docker.network.portmap"
GATEWAY = "com.docker.network.gateway"
REQUEST_TYPE = "RequestAddressType"
DOCKERS_OWN = "com.docker."
"""Keys of Options that dockerd itself writes begin so (moby: libnetwork/netlabel)."""


class Activated(msgspec.Struct, frozen=True):
    """Plugin.Activate."""

    Implements: tuple[str, ...]


class DriverCapabilities(msgspec.Struct, frozen=True):
    """``Scope`` "global" would have Docker keep the networks in Swarm's store, which refuses drivers like this one."""

    Scope: str = "local"
    ConnectivityScope: str = "global"


class IpamCapabilities(msgspec.Struct, frozen=True):
    """Neither is needed: a MAC follows from the endpoint, and what was given out is on our own disk."""

    RequiresMACAddress: bool = False
    RequiresRequestReplay: bool = False


class AddressSpaces(msgspec.Struct, frozen=True):
    """One for both: addresses are unique in the cluster whoever asks."""

    LocalDefaultAddressSpace: str
    GlobalDefaultAddressSpace: str


class Made(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to CreateEndpoint; a field that the request had is an error to Docker."""

    Interface: Addresses


class Moved(msgspec.Struct, frozen=True):
    """``SrcName``: what dockerd moves; it is called ``DstPrefix`` and a number there."""

    SrcName: str
    DstPrefix: str


class StaticRoute(msgspec.Struct, frozen=True, omit_defaults=True):
    """``RouteType`` 0: by way of ``NextHop``; 1: on the device itself."""

    Destination: str
    RouteType: int = 0
    NextHop: str = ""


class Joined(msgspec.Struct, frozen=True, omit_defaults=True):
    """``DisableGatewayService``: no second network behind the user's back where this one has no way out."""

    InterfaceName: Moved
    Gateway: str = ""
    GatewayIPv6: str = ""
    StaticRoutes: tuple[StaticRoute, ...] = ()
    DisableGatewayService: bool = False


class OperInfo(msgspec.Struct, frozen=True):
    """EndpointOperInfo: what we know of an endpoint that Docker does not."""

    Value: dict[str, str]


class PoolGiven(msgspec.Struct, frozen=True):
    """``Data``: the gateway, where it is decided already."""

    PoolID: str
    Pool: str
    Data: dict[str, str]


class AddressGiven(msgspec.Struct, frozen=True):
    """``Address``: with prefix length."""

    Address: str
    Data: dict[str, str] = {}


class Refused(msgspec.Struct, frozen=True):
    """What Docker shows its user: a network driver's ``Err``, an IPAM driver's ``Error``."""

    Err: str
    Error: str
