"""What a CNI runtime may say, and what of it becomes an attach: environment, network configuration, runtimeConfig,
CNI_ARGS and args.cni, each with its rule and the specification's error code (SPEC.md 1.1.0, CONVENTIONS.md). Values in,
values out; knows no cluster.

Runtimes written in Go match keys whatever their case: containerd's CRI says HostPort, podman hostPort.
"""

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from meshd.api.body import depth
from meshd.config import CNI_JSON_DEPTH, CNI_NAME_MAX_CHARS
from meshd.shell.attach import EndpointName

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""Operation -> the first version that has it."""

INCOMPATIBLE, UNSUPPORTED, UNKNOWN_CONTAINER, ENVIRONMENT, IO, DECODING, INVALID = 1, 2, 3, 4, 5, 6, 7
AGAIN, UNAVAILABLE, LIMITED = 11, 50, 51
KERNEL, CONFLICT, FAULT, DIFFERENT = 100, 101, 102, 103
"""Codes of the specification, then our own: the kernel refused; what is asked for contradicts what there is; a fault in
meshd; CHECK found another state than there should be."""

CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
IFNAME = re.compile(r"[A-Za-z0-9_.-]{1,15}")
KEYS = (
    "cniVersion", "cniVersions", "name", "type", "network", "socket", "capabilities", "runtimeConfig", "args", "dns",
    "prevResult", "ipMasq", "ipam", "disableCheck", "disableGC",
)  # fmt: skip
K8S = "K8S_"
ARGS = ("IP", "MAC", "IGNOREUNKNOWN")


class CniRefusal(Exception):
    """An error result: ``code``, what is wrong, and what to do or ""."""

    def __init__(self, code: int, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.hint = hint


Texts = Annotated[tuple[Annotated[str, msgspec.Meta(max_length=255)], ...], msgspec.Meta(max_length=256)]


class PortMapping(msgspec.Struct, frozen=True):
    """Keys in lower case. ``hostport`` 0 asks for nothing."""

    hostport: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    containerport: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    protocol: str = "tcp"
    hostip: str = ""

    def text(self) -> str:
        """Write it as --publish does."""
        ip = f"[{self.hostip}]:" if ":" in self.hostip else f"{self.hostip}:" if self.hostip else ""
        return f"{ip}{self.hostport}:{self.containerport}/{self.protocol.lower() or 'tcp'}"


class Dns(msgspec.Struct, frozen=True):
    """A result's ``dns``; read from keys in lower case."""

    nameservers: Texts = ()
    domain: Annotated[str, msgspec.Meta(max_length=255)] = ""
    search: Texts = ()
    options: Texts = ()


class RuntimeDns(msgspec.Struct, frozen=True):
    """runtimeConfig.dns."""

    servers: Texts = ()
    searches: Texts = ()
    options: Texts = ()


class Bandwidth(msgspec.Struct, frozen=True):
    """Rates in bit/s, bursts in bits; 0: no limit. "ingress" is into the container."""

    ingressrate: Annotated[int, msgspec.Meta(ge=0)] = 0
    ingressburst: Annotated[int, msgspec.Meta(ge=0)] = 0
    egressrate: Annotated[int, msgspec.Meta(ge=0)] = 0
    egressburst: Annotated[int, msgspec.Meta(ge=0)] = 0


class Valid(msgspec.Struct, frozen=True):
    """One of GC's attachments."""

    containerid: str
    ifname: str


class Wish(msgspec.Struct, frozen=True):
    """What an ADD asks of an endpoint."""

    name: str | None
    aliases: tuple[str, ...]
    ips: tuple[str, ...]
    mac: str | None
    published: tuple[str, ...]
    dns: Dns
    bandwidth: Bandwidth


class Config(msgspec.Struct, frozen=True):
    """A network configuration that is in order. ``name``: the list's; ``raw``: all of it."""

    version: str
    name: str
    network: str
    raw: Mapping[str, Any]


def read_config(text: bytes, command: str) -> Config:
    """Read standard input. Raises CniRefusal."""
    try:
        if depth(text, CNI_JSON_DEPTH) > CNI_JSON_DEPTH:
            raise CniRefusal(INVALID, f"the network configuration is nested deeper than {CNI_JSON_DEPTH}")
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise CniRefusal(DECODING, f"the network configuration is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise CniRefusal(DECODING, "the network configuration is not a JSON object")
    version = raw.get("cniVersion", "")
    if version not in VERSIONS:
        raise CniRefusal(INCOMPATIBLE, f"cniVersion: {shown(version)} is not one of {', '.join(VERSIONS)}")
    if VERSIONS.index(version) < VERSIONS.index(SINCE.get(command, VERSIONS[0])):
        raise CniRefusal(INCOMPATIBLE, f"cniVersion: {version} has no {command}", f"{SINCE[command]} has")
    name = raw.get("name")
    if not isinstance(name, str) or not CONTAINER_ID.fullmatch(name) or len(name) > CNI_NAME_MAX_CHARS:
        raise CniRefusal(INVALID, f"name: {shown(name)} is not the name of a network configuration")
    network = raw.get("network", name)
    if not isinstance(network, str) or not network:
        raise CniRefusal(INVALID, f"network: {shown(network)} is not a network's name")
    if command != "DEL":  # what was attached goes, whatever the configuration says by now
        _supported(raw)
    return Config(version, name, network, raw)


def _supported(raw: Mapping[str, Any]) -> None:
    """Refuse what would be silently not done. Runtimes add keys with a "/" (cni.dev/...), and x-... is anybody's."""
    for key, value in raw.items():
        if key not in KEYS and "/" not in key and not key.startswith(("x-", "_")):
            known = ", ".join(key for key in KEYS if key not in ("prevResult", "runtimeConfig", "args"))
            raise CniRefusal(UNSUPPORTED, f"{key}: {shown(value)}: meshd has no such key", f"it has {known}")
    if raw.get("ipam"):
        raise CniRefusal(
            UNSUPPORTED, f"ipam: {shown(raw['ipam'])}: addresses are the network's", "leave ipam out"
        )
    if raw.get("ipMasq") is False:
        raise CniRefusal(
            UNSUPPORTED,
            "ipMasq: false: whether a network is masqueraded is said where it is created",
            "leave it out, or use a network made with --internal",
        )


def shown(value: object) -> str:
    """Show what was said, briefly."""
    text = repr(value) if isinstance(value, str | None) else msgspec.json.encode(value).decode()
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "..."


SHOWN_CHARS = 80


def container(environment: Mapping[str, str]) -> str:
    """Return CNI_CONTAINERID. Raises CniRefusal."""
    found = environment.get("CNI_CONTAINERID", "")
    if not CONTAINER_ID.fullmatch(found) or len(found) > CNI_NAME_MAX_CHARS:
        raise CniRefusal(ENVIRONMENT, f"CNI_CONTAINERID: {shown(found)} is not a container's id")
    return found


def ifname(environment: Mapping[str, str]) -> str:
    """Return CNI_IFNAME. Raises CniRefusal."""
    found = environment.get("CNI_IFNAME", "")
    if not IFNAME.fullmatch(found) or found in (".", "..", "lo", "all", "default"):
        raise CniRefusal(
            ENVIRONMENT,
            f"CNI_IFNAME: {shown(found)} cannot be an endpoint's interface",
            "use eth0 or the like",
        )
    return found


def arguments(environment: Mapping[str, str]) -> dict[str, str]:
    """Read CNI_ARGS, "KEY=VALUE;..." in any order. Raises CniRefusal for what is malformed, and for a key that nobody
    knows unless IgnoreUnknown says so."""
    found: dict[str, str] = {}
    for pair in filter(None, environment.get("CNI_ARGS", "").split(";")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CniRefusal(ENVIRONMENT, f"CNI_ARGS: {shown(pair)} is not of the form KEY=VALUE")
        found[key.strip()] = value.strip()
    lenient = found.get("IgnoreUnknown", "").lower() in ("1", "true", "yes", "on")
    for key in found:
        if not lenient and key.upper() not in ARGS and not key.startswith(K8S):
            raise CniRefusal(
                ENVIRONMENT,
                f"CNI_ARGS: {key} is unknown",
                "known are IP, MAC, K8S_...; IgnoreUnknown=1 lets it pass",
            )
    return found


def wish(config: Config, args: Mapping[str, str]) -> Wish:
    """Put together what an ADD asks for. What is said twice counts in this order: runtimeConfig, args.cni, CNI_ARGS
    (CONVENTIONS.md: a plugin that understands args must ignore the equivalent of CNI_ARGS). Raises CniRefusal."""
    runtime = _object(config.raw.get("runtimeConfig"), "runtimeConfig")
    said = _object(_object(config.raw.get("args"), "args").get("cni"), "args.cni")
    ips = _either(runtime, said, "ips", Texts) or tuple(filter(None, args.get("IP", "").split(",")))
    mac = _either(runtime, said, "mac", str) or args.get("MAC") or None
    asked = runtime.get("portMappings")
    mappings = _read(
        lower([] if asked is None else asked), tuple[PortMapping, ...], "runtimeConfig.portMappings"
    )
    return Wish(
        name=endpoint_name(args.get("K8S_POD_NAME", "")),
        aliases=_aliases(runtime.get("aliases"), config),
        ips=tuple(_address(ip) for ip in ips),
        mac=mac,
        published=tuple(dict.fromkeys(mapping.text() for mapping in mappings if mapping.hostport)),
        dns=_dns(config.raw.get("dns"), runtime.get("dns")),
        bandwidth=_read(lower(runtime.get("bandwidth") or {}), Bandwidth, "runtimeConfig.bandwidth"),
    )


def valid(config: Config) -> set[tuple[str, str]]:
    """Return what GC is to leave alone: (container id, ifname). Without the list nothing could be told from what is
    stale, so it must be there. Raises CniRefusal."""
    said = config.raw.get("cni.dev/valid-attachments")
    if said is None:
        raise CniRefusal(INVALID, "cni.dev/valid-attachments: missing; nothing was freed")
    found = _read(lower(said), tuple[Valid, ...], "cni.dev/valid-attachments")
    return {(one.containerid, one.ifname) for one in found}


def endpoint_name(pod: str) -> str | None:
    """Make an endpoint's name of a pod's (253 characters at most) or container's; one that does not fit is cut and
    ends in a hash of itself."""
    if not pod:
        return None
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", pod).lstrip("_.-")
    if name == pod and len(name) <= NAME_CHARS:
        return name
    digest = hashlib.blake2b(pod.encode(), digest_size=4).hexdigest()
    return f"{name[: NAME_CHARS - len(digest) - 1]}-{digest}" if name else digest


NAME_CHARS = 63


def lower(value: Any) -> Any:
    """Give objects keys in lower case, all the way down, and leave nulls out: Go writes a list that is not set so."""
    if isinstance(value, dict):
        return {str(key).lower(): lower(inner) for key, inner in value.items() if inner is not None}
    return [lower(inner) for inner in value] if isinstance(value, list) else value


def _object(value: object, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CniRefusal(INVALID, f"{where}: {shown(value)} is not an object")
    return value


def _either(first: Mapping[str, Any], second: Mapping[str, Any], key: str, form: Any) -> Any:
    """Read ``key`` from runtimeConfig, else from args.cni."""
    for source, where in ((first, "runtimeConfig"), (second, "args.cni")):
        if source.get(key):
            return _read(source[key], form, f"{where}.{key}")
    return None


def _aliases(said: object, config: Config) -> tuple[str, ...]:
    """Read aliases: a list, or podman's object of lists by network."""
    if isinstance(said, dict):
        said = said.get(config.name, [])
    form = Annotated[tuple[EndpointName, ...], msgspec.Meta(max_length=64)]
    found: tuple[str, ...] = _read(said or [], form, "runtimeConfig.aliases")
    return found


def _dns(static: object, runtime: object) -> Dns:
    """Take the runtime's word for the container's DNS, else the configuration's."""
    if runtime:
        found = _read(lower(runtime), RuntimeDns, "runtimeConfig.dns")
        return Dns(nameservers=found.servers, search=found.searches, options=found.options)
    said: Dns = _read(lower(static or {}), Dns, "dns")
    return said


def _address(text: str) -> str:
    """Take an address with or without a prefix length: the network knows its own. Raises CniRefusal."""
    try:
        return str(ipaddress.ip_interface(text.strip()).ip)
    except ValueError:
        raise CniRefusal(INVALID, f"{shown(text)} is not an address") from None


def _read(value: object, form: Any, where: str) -> Any:
    try:
        return msgspec.convert(value, form)
    except msgspec.ValidationError as error:
        what, _, at = str(error).partition(" - at `$")
        raise CniRefusal(INVALID, f"{where}{at.rstrip('`')}: {what[:1].lower()}{what[1:]}") from None
