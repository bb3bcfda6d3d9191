"""Every setting and every number.

Two halves. *Settings* are what the operator's file says (configs/meshd.toml documents each key for people;
``load`` checks it). *Constants* are what the project decided: name, unit suffix, reason, formula. No other
module holds a number that somebody might want to argue about.
"""

import ipaddress
import re
import tomllib
from typing import Annotated, Literal, get_args

import msgspec

from meshd.errors import ConfigError

# --- membership (swim/) ---------------------------------------------------------------------------------
PROBE_PERIOD_S = 1.0  # SWIM's protocol period; memberlist's LAN value, so figures compare
PROBE_TIMEOUT_S = 0.3  # direct ack; LAN round trips are < 1 ms, so this is a scheduler stall, not a network
INDIRECT_PROBES = 3  # k of SWIM 3.1; Lifeguard's value
DEGRADED_PINGS = (
    5  # more direct pings once a stream has answered: at 10 % loss, all six are lost 1 time in 20,000
)
DEGRADED_PING_S = 0.1  # between two of them: so that one full buffer does not swallow all
NACK_AFTER_S = (
    0.2  # a helper says "no answer yet" this long after PingReq; below PROBE_PERIOD_S - PROBE_TIMEOUT_S
)
HEALTH_MAX = 8  # Lifeguard's S: local health scores 0..8, periods and timeouts scale by score + 1
SUSPICION_MIN_S = 2.0  # with enough confirmations. News takes ms (spread/), so this need not grow with log N:
#                        refutation needs 2 round trips and a scheduler stall
SUSPICION_MAX_S = 4.5  # without any: everyone is probed about once a period, so 3 independent probes failed
SUSPICION_CONFIRMATIONS = 2  # k: this many others halve the doubt (Lifeguard IV-B formula)
RETRY_FAILED_PER_S = 1.0  # each failed member is tried this often by the whole cluster together, for ever
PAUSE_S = 1.0  # woken later than this after a deadline: this host was paused; it distrusts itself
CLONE_REFUTE_S = (
    1.0  # two hosts with one identity would outbid each other at line rate; once a second alarms too
)
CLONE_OUTBIDS = (
    3  # an earlier life, with clock and disk both set back, is outbid once or twice; a clone answers
)
RELAYS_MAX = 1024  # PingReqs in flight at a helper: 3 a period from each of 300 accusers; beyond, no promise
RTT_GAIN = 0.125  # smoothing of a member's round trip time: RFC 6298's alpha
RESTART_MAX_S = 60.0  # longest "restarting for D" that a receiver honours
RESTART_ANNOUNCED_S = 30.0  # what a stopping daemon announces: systemd restarts within RestartSec + boot
INCARNATION_MAX = 2**53  # above: not obeyed. Unix ms until the year 287396; a wild claim burns nothing
JOIN_RETRY_S = 1.0  # a host that knows no live peer greets its seeds this often
JOIN_TARGETS = 64  # at most so many addresses are greeted at once
JOIN_SYNCS = 2  # streams a joining host opens at once: one may be slow
SEED_CHECK_S = 10.0  # a seed that is no living member is greeted this often: two clusters may meet there
HELLO_RETRY_S = 0.2  # unanswered HELLO is sent again after this, doubling to JOIN_RETRY_S

# --- news (spread/) -------------------------------------------------------------------------------------
RINGS = 3  # k = 2 * RINGS neighbours: last of 1,000 hosts after 2.9 RTT at 1 % loss (gossip.md, 5)
RANDOM_NEIGHBOURS = 1  # for views that differ
NEWS_BYTES_PER_S = 8_000_000  # pacing of relayed and own news together: 64 Mbit/s of any underlay
NEWS_BURST_BYTES = 1_000_000  # a burst of about 800 full datagrams before pacing starts
BUCKET_ITEMS = 8  # average items a bucket, 8..16 as it fills: one bucket's stamps fit a datagram
SPLITS_A_PUT = 2  # buckets split with each item that comes, 20 us each, once there are to be twice as many
DATAGRAM_BUCKETS = 128  # 128 * 8 B of hashes fit one datagram; above, repair goes by stream
DATAGRAM_REPAIR_BUCKETS = 8  # more differing buckets than this: by stream
DIFFERING_CONTACTS = 2  # in a row with one peer, before repair starts: news in flight is no difference
ANNOUNCE_ABOVE_BYTES = 1000  # encoded items above this are announced and fetched by stream
ITEM_MAX_BYTES = 64 * 1024
REPAIR_IDLE_S = 0.5  # at most one repair with a peer in this time
FLOOD_SYNC_MAX_ITEMS = 500  # items of one sync that are passed on at once; above, digests carry them further
STAMPS_PER_DATAGRAM = 20  # 50 B a stamp: what fits PLAINTEXT_MAX_BYTES with room to spare
STREAM_CONNECT_S = 3.0  # to connect and greet; also for a whole fallback probe
FETCH_AGAIN_S = 3.0  # an announced item is asked for again, of whoever announces it, after this
FETCHES_REMEMBERED = 1024  # items asked for; oldest forgotten, and then only asked for once more
ITEMS_AT_ONCE = 64  # of a sync, taken before the loop gets its turn: 3 ms with all that follows from them
SYNCS_AT_ONCE = 8  # opened by this host: after a partition everybody differs from everybody
STREAMS_OUTBOUND = 64  # opened by this host at once; beyond, a sync or fetch fails and digests ask again
STREAMS_INBOUND = 64  # more at once are refused: the opener tries again by digest
DRAIN_PACKETS = 64  # datagrams read a wakeup before other tasks get their turn
UDP_BUFFER_BYTES = 4 * 1024 * 1024  # asked for; the kernel's rmem_max may grant less
SYNC_TIMEOUT_S = 30.0  # a stream without progress for this long is dropped

# --- path MTU (node/pathmtu.py) -------------------------------------------------------------------------
MTU_PROBE_PERIOD_S = 10.0  # each path is measured once in this time: one packet if nothing is wrong
MTU_PROBE_GAP_S = 0.1  # at most 10 paths a second begin: 120 kbit/s at 1,500 bytes, 100 s for 1,000 hosts
MTU_PROBE_TIMEOUT_S = 0.3  # a probe without an answer; as PROBE_TIMEOUT_S
MTU_HOSTS_NAMED = 5  # in one line of an alarm, and lines of such alarms in `status`
MTU_PROBE_TRIES = 3  # of one size before it counts as lost, and the size found is tried so often once more

# --- wire (wire/) ---------------------------------------------------------------------------------------
DATAGRAM_MAX_BYTES = 1232  # UDP payload: IPv6's minimum MTU 1280 - 40 - 8
MTU_PROBE_MAX_BYTES = 65535  # one datagram with a MtuProbe alone may be as large as the underlay's MTU
IP_UDP_BYTES_V4 = 28  # headers before a datagram: what an IP packet has beyond it
IP_UDP_BYTES_V6 = 48
HEADER_BYTES = 24
TAG_BYTES = 16
PLAINTEXT_MAX_BYTES = DATAGRAM_MAX_BYTES - HEADER_BYTES - TAG_BYTES
REPLAY_WINDOW = 1024  # packets a sender session may be reordered by
CANDIDATE_SESSIONS = 1024  # sessions learnt from HELLO and not yet proved; oldest go first
WHO_PER_S = 20.0  # WHO answers to packets that cannot be read, all sources together
HELLO_PER_S = 500.0  # HELLOs looked at, all sources together
STREAM_RECORD_BYTES = 16 * 1024
STREAM_BLOB_MAX_BYTES = ITEM_MAX_BYTES + 4096  # one run of messages in a stream: the largest item as News,
#                                                or 1,024 stamps of 57 bytes
MESSAGE_DEPTH = (
    8  # nesting of any message; the deepest today is 7 (messages, News, items, item, body, subnets)
)
ARRAY_MAX = 1024  # elements of any array: stamps, keys, published ports
MAP_MAX = 64  # pairs of the only maps there are: options and labels
RING_KEYS_MAX = 16  # a rotation needs 3; the scan for a key id stays short
SESSION_PACKETS_MAX = 2**48  # a session seals at most this many datagrams: 1,300 years at 6,500 a second
KEYS_CACHED = 1024  # AES-GCM objects at 2.5 kB each (reliability.md, 1.4): a protocol period's peers
RETIRED_SESSIONS = (
    65536  # replaced sessions remembered, oldest forgotten: 1,000 hosts restarting 65 times each
)
CHALLENGES_OPEN = 1024  # unanswered HELLOs, oldest forgotten
CHALLENGE_S = (
    5.0  # a HELLO_ACK later than this is not believed: an answer held back must not undo what came since
)

# --- state and addresses (state/) -------------------------------------------------------------------------
DEAL_SHARE = 0.5  # of a new network's pool goes to the hosts alive at creation
BLOCK_MAX_FIRST = 64  # a first hand-on is min(/26, pool / (8 * live hosts))
BLOCK_SHARE = 8
HOLD_RETRY_S = 0.5  # between two questions to one witness of a hand-on: a few round trips and two fdatasyncs
HOLD_IDS_MAX = 16  # deeds asked about at a time: they go along, 150 bytes each
LOW_WATER = 0.25  # fetch ahead when less than this share of own space is free
COOLDOWN_S = 120.0  # a released address rests this long if any other is free
BLOCK_ASK_TIMEOUT_S = 2.0
BLOCK_ASKS_MAX = (
    4  # asks for one attach that were granted and used up by others, before their owner is passed over
)
INSERTS_SINGLE_MAX = (
    64  # new indices put into the sorted ones one by one: 10 us each at 100,000; sorting all anew takes 2 ms
)
DEED_DEPTH_MAX = 2  # genesis 0, dealt or handed on 1, handed on again 2
DEED_DEPTH_MAX_ONE = (
    64  # of one address whose block's owner has left and so cannot take it back (state/blocks.py)
)
TOMBSTONES_MIN = 64  # own endpoint tombstones before the floor is raised; above, when they outnumber live
VNI_MIN = 4096
VNI_MAX = 2**24 - 1
OVERLAY_PREFIX_V4 = 20
BRIDGE_PREFIX_V4 = 24
ULA_PREFIX = 64
V6_INDEX_BITS = 16  # a v6-only network allocates among this many indices of its /64
POOL_MAX_BITS = 24  # largest index space, 2**24: a /8
MTU_DEFAULT = 1500  # Ethernet's, where no host has told its underlay's
MTU_MIN_V4 = 576  # RFC 791: what every host must be able to receive
MTU_MIN_V6 = 1280  # RFC 8200, section 5
MTU_MAX = 65535  # of a bridge and a veth
LABELS_MAX = 64  # labels of one network; likewise options
LABEL_KEY_MAX_CHARS = 255
LABEL_VALUE_MAX_CHARS = 1024
LABELS_MAX_BYTES = 16 * 1024  # all of one network's, so that its item stays far below ITEM_MAX_BYTES
SUBNETS_MAX = 16  # of one network; each has its root deed, and its route in every container
EXCLUDE_MAX = 256  # --exclude addresses of one network
ID_PREFIX_MIN_CHARS = 4  # the shortest part of a hex id that names a network; also of ``name~ab12``

# --- kernel (kernel/, shell/reconcile.py) ---------------------------------------------------------------
NETLINK_BATCH = 500  # rows a sendmsg: 5,000 was 5 times slower at 100,000 rows (perf.md, 3)
NETLINK_BATCH_BYTES = 128 * 1024  # of one sendmsg: below the default send buffer (208 KiB) with its overhead
NETLINK_COMMAND_RCVBUF_BYTES = (
    4 * 1024 * 1024
)  # request socket: NETLINK_BATCH errors of ~1 KiB overflow 208 KiB
NETLINK_DUMP_TRIES = 4  # once, and up to 3 times again when a change interrupted it
NETLINK_REPLY_S = 10.0  # the kernel answers while we send; no answer for this long is a lost one
NETLINK_RCVBUF_BYTES = 64 * 1024 * 1024  # event socket: held 100,000 events (reliability.md, 3.2)
RECONCILE_S = 30.0  # full compare even when no event came
REFUSED_AGAIN_S = 0.5  # what the kernel refused is tried again after this, doubling to RECONCILE_S
LINKS_DELETED_TOGETHER = (
    64  # devices in one deletion: each costs 1.2 ms so, 17 ms alone; the kernel does nothing else
)
#                              with any device meanwhile
EVENT_GATHER_S = (
    0.005  # what the kernel tells of our own deed is read together, and not while the deed goes on
)
EVENT_SETTLE_S = 0.02  # wait for a burst of kernel events to end before comparing: most of a repair's time
ROWS_PUT_BACK_MAX = (
    256  # deleted rows that are put back as events name them; of more, the comparison finds out
)
DUMP_AGAIN_S = 1.0  # at most one full compare in this time when the event socket overran
RECONCILE_REST = 120.0  # that one rests so many times as long as it took: less than 1 % of the time, so that what is deleted
#                        meanwhile, and is put back after it, is less than 1 % of all. The kernel's dump of
#                        a bridge's rows grows with their square (0.1 s for 66,000, 2 s for 200,000): each buffer skips
#                        all before, and they are not in the cache
COMPARE_REST = 4.0  # after a full compare, rest this many times as long as it took: at most a fifth of a core
DELETIONS_ASKED_S = 1.0  # while deletions are withheld, ask this often whether they may be done
FIGHT_REPAIRS_PER_MIN = 5  # of one object: more is another program that wants it otherwise
FIGHT_OBJECTS_MAX = (
    1024  # objects of one comparison that are counted: memory, where somebody flushes 100,000 rows
)
FIGHT_WINDOW_S = 60.0  # what that is counted over; as long without a repair ends a fight
FIGHT_BACKOFF_S = 60.0  # a fought-over object is left alone for this long, doubling to FIGHT_BACKOFF_MAX_S
FIGHT_BACKOFF_MAX_S = 900.0  # a program that loops costs us one write in a quarter of an hour
VANISHED_GRACE_S = 30.0  # an endpoint whose link is gone is released after this
ALONE_S = 60.0  # without peers for this long, a host trusts its own state enough to delete
VXLAN_PORT = (
    4789  # RFC 7348's. What is told apart by name or number in the kernel is so by this: plan/names.py
)
GOSSIP_PORT = 7947  # 7946 is Swarm's and serf's
VXLAN_TTL = 64  # of the outer packet, whatever ip_default_ttl says
PUBLISHED_PORTS_MAX = 1024  # of one endpoint: each is an element of a map, 0.2 MB of kernel memory in all
NFT_ELEMENTS_A_MESSAGE = 500  # 40 to 60 bytes each: the list is one attribute, of at most 64 KiB
CONNTRACK_FILTERS_MAX = 8  # dumps with a filter; each walks the whole table, 9 ms at 262,144 buckets
CONNTRACK_ALL_MAX = 10_000  # up to so many connections one dump of all is cheaper: 2 us each
NFT_TIMEOUT_S = 60.0  # one run of nft; 90,000 elements (of 10,000 endpoints here) take 2 s of an idle core
ECHOES_MAX = 200_000  # own row changes whose events are not read yet; above, they count as somebody else's
ECHO_DEVICE_S = 2.0  # a device that we change is seen as it should be within this; making 500 takes 0.2 s
EVENTS_PER_READ = 256  # kernel events taken in one go, before the loop gets its turn: 6 us each
VXLAN_OVERHEAD_V4 = 50
VXLAN_OVERHEAD_V6 = 70
ROUTE_PROTOCOL = 109  # marks our nexthops and routes
ROUTE_METRIC = (
    7947  # of our routes to single addresses: one that nobody else uses, so that ours replace only ours
)
NEXTHOP_BASE = 0x6D000000  # our nexthop ids: base + 23 bits of hash(host id), group = +0x800000
NEXTHOP_BASE_OTHERS = (
    0x80000000  # of clusters on other VXLAN ports: the port's 16 bits, then 14 bits of the hash
)

LAG_PERIOD_S = 1.0  # how often the loop's lateness is measured: at 0.1 it cost 0.3 % of a core at rest
LAG_WINDOW_S = 60.0  # the worst of this long is what `status` shows

OFFLOAD_PERIOD_S = (
    5.0  # between two trials of checksums on the overlay, one host each: 2 packets if all is well
)
OFFLOAD_TRIES = (
    3  # so often a packet with a checksum fails, and one without is answered, before the card is blamed
)
OFFLOAD_ANSWER_S = 0.5  # how long the other kernel's refusal may take; it comes within a round trip
OFFLOAD_PORT = 9  # discard (RFC 863): hardly anybody has it, and who has answers nothing
OFFLOAD_HOSTS_NAMED = 4  # in one line of `status`

HOUSEKEEPING_S = 5.0  # how often vanished links and tombstones are looked at
UNDERLAY_CHECK_S = 30.0  # how often the underlay's address, MTU and routes are read anew, without any event
UNDERLAY_RETRY_S = 1.0  # while this host has no usable address; a default route that returns makes no event
LAN_PROBES = 3  # RFC 5227's PROBE_NUM: so often the LAN is asked who has an address before it is used
LAN_PROBE_WAIT_S = (
    0.1  # between two; RFC 5227 waits 1 to 2 s, for hosts that boot all at once. A LAN answers in ms
)
LAN_PROBE_POLL_S = 0.02  # how often the answer is looked for
LAN_STRANGERS_MAX = 8  # addresses that somebody else has which one attach passes over
BRIDGE_CONFIRM_S = 60.0  # a card that became a bridge's port goes back after this, unless confirmed
BRIDGE_CONFIRM_MIN_S = 1.0
BRIDGE_CONFIRM_MAX_S = 3600.0  # longer than anybody waits at a console that does not answer
BRIDGE_DEADLINE_STEP_S = 10.0  # the deadline counts a machine's sleep, our clock does not: look this often
BRIDGE_REVERT_RETRY_S = 1.0  # going back is tried until it works
BRIDGE_V6_SETTLE_S = 0.2  # a v6 address works once a work queue of the kernel has run: 1-2 ms here
BRIDGE_V6_SETTLE_STEP_S = 0.001
BRIDGE_STOP_S = 5.0  # a stopping daemon tries that long to undo what is unconfirmed; systemd gives it 10
BRIDGE_KEEP_REST_S = 0.2  # between two looks at the ports: containers' devices come and go by the hundred
BRIDGE_KEEP_BACKOFF_S = 1.0  # a port that has to be put right again rests for this, doubling
BRIDGE_KEEP_BACKOFF_MAX_S = 60.0  # a program that fights over it costs one move a minute
LEAVE_CONFIRM_S = (
    5.0  # a leaving host waits so long for those who get its address blocks to say that they have them
)
LEAVE_ASK_S = 0.5  # and asks them again after this
FORGOTTEN_LINGER_S = (
    30.0  # a forgotten host that is back takes down what it had for so long at most, then ends
)
LEAVE_LINGER_S = 1.0  # a leaving daemon stays this long so that its good-bye spreads

STATUS_S = 5.0  # how often the service manager's one line of status is written anew, where it changed
NOTIFY_AGAIN_S = 0.5  # a service manager that does not read its socket is told again after this
WATCHDOG_FEED_SHARE = (
    1 / 4
)  # of the service manager's period: fed so often, as sd_watchdog_enabled(3) advises, twice
WATCHDOG_ROUND_SHARE = 1 / 8  # a loop with nothing to do goes round so often
WATCHDOG_PATIENCE = {  # in periods: a loop that has not gone round for so long has stalled
    "gossip": 0.5,
    "api": 0.5,
    "cni": 0.5,
    "docker": 0.5,
    "netlink": 3.0,  # of 30 s (the unit's): one nft may take NFT_TIMEOUT_S, one netlink answer NETLINK_REPLY_S
}

# --- this process (daemon.py) ----------------------------------------------------------------------------
GC_THRESHOLDS = (
    10_000,
    2,
    500,
)  # objects made before a young collection (1-2 ms), of these before a middle one (5 ms; at 10 it was 20), of
#                                   these before all are looked at (50 ms at 100,000 endpoints, whose keys and versions
#                                   are looked at, the records not: model.py)
SWITCH_INTERVAL_S = (
    0.001  # for how long a worker thread keeps the loop waiting each time that this has let go of
)
#                             the interpreter, which every system call does; Python's 5 ms add up to 50 and more
BRIDGE_PORTS_MAX = (
    1023  # ports a Linux bridge has at most: BR_MAX_PORTS is 1 << BR_PORT_BITS (10), and 0 is none
)
NEIGH_ALARM = 0.8  # of the kernel's gc_thresh3: when so many learned neighbours are there, say so

# --- Docker (shell/held.py, api/cnm*.py) ------------------------------------------------------------------
HELD_S = (
    60.0  # an address given to Docker is kept for its endpoint, which comes within milliseconds: a dockerd
)
#                that was killed in between must not keep it for good
DOCKER_PORTS = (49153, 65535)  # what -P and -p PORT draw a host port from: Docker's own range
CNM_BODY_MAX_BYTES = 512 * 1024  # 1,024 published ports, which dockerd tells twice at 110 bytes each
CNM_CONNECTIONS = 512  # all of them root's: dockerd starts 128 containers a core at once after a boot
DOCKER_ANSWER_S = 10.0  # the engine's own socket answers in ms; a busy dockerd in seconds
DOCKER_BODY_MAX_BYTES = 8 * 1024 * 1024  # one answer of the engine: a list of 1,000 containers is 2 MB
DOCKER_RETRY_S = 5.0  # an engine that is away is asked again after this
ENDPOINT_ALIASES_MAX = 64  # as Endpoint.aliases
CNM_RETRY_S = 30.0  # the folder of Docker's plugins, which Docker may make later, is looked for this often

# --- disk (shell/journal.py) ----------------------------------------------------------------------------
RESERVE_BYTES = 1024 * 1024  # kept allocated for when the disk is full: 8,000 releases of 130 bytes each
JOURNAL_MAX_BYTES = 8 * 1024 * 1024  # above: a snapshot is taken and the journal starts anew

# --- the local socket (api/) ----------------------------------------------------------------------------
API_BODY_MAX_BYTES = 64 * 1024
API_HEADER_S = 2.0
API_REQUEST_S = 10.0
API_WRITE_S = 5.0
API_CONNECTIONS = 64
API_CONNECTIONS_PER_UID = 16
API_CONNECTIONS_FOR_ROOT = 16  # of API_CONNECTIONS, kept for uid 0
SUN_PATH_BYTES = 98  # of a socket's path: unix(7)'s 107 less 9, for the name it has until its mode is right
API_BACKLOG = 128  # connections the kernel holds before accept
API_ACCEPT_PAUSE_S = 0.1  # out of descriptors or memory: accept again after this
API_HEADER_MAX_BYTES = 16 * 1024
API_IDLE_S = 30.0  # a kept-alive connection without a request is closed after this
API_READ_BYTES = 16 * 1024
LISTED_AT_ONCE = 250  # endpoints shown before the loop gets its turn: 2 ms
API_WRITE_BYTES = (
    64 * 1024
)  # one write, to be taken within API_WRITE_S: a reader slower than 13 kB/s is cut off
API_LINGER_S = 1.0  # after a refusal the rest of the request is read and dropped, so that the answer arrives
API_STOP_S = 5.0  # a stopping server lets requests under way finish for this long
API_JSON_DEPTH = 16
API_QUERY_FIELDS = 16
SHAPING_BURST_S = 0.01  # of a rate limit without a burst: so much of the rate may leave at once
SHAPING_LATENCY_S = 0.025  # what waits longer under a rate limit is dropped
CNI_BODY_MAX_BYTES = 6 << 20  # what the executable reads (4 MiB) and what it saw in a namespace
CNI_JSON_DEPTH = 32  # a delegated configuration with its prevResult
CNI_CONNECTIONS = 512  # after a boot a runtime starts all its containers at once
CNI_NAME_MAX_CHARS = 255  # of a container's id or a configuration's name: both are in one journal record
API_GROUPS_BYTES = 1024  # SO_PEERGROUPS: Python's getsockopt takes no larger buffer = 256 groups
REPAIRS_NAMED_MAX = 8  # objects named in one kernel-repaired or kernel-fight event; the rest as a number
STALE_EVENTS_MAX = 32  # endpoints of one host named one by one when it fails or is back; the rest as a number
EVENTS_KEPT = 256  # the ring, and what a watcher may fall behind by before it gets `resync`


NAME_MAX_CHARS = (
    63  # of a host's, a network's and an endpoint's name: a DNS label; Linux allows a hostname of 64
)

# --- settings ---------------------------------------------------------------------------------------------
HOST_NAME = rf"[A-Za-z0-9][A-Za-z0-9.-]{{0,{NAME_MAX_CHARS - 1}}}"


class HostSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[host]"""

    name: str | None = None
    state_dir: str = "/var/lib/meshd"
    run_dir: str = "/run/meshd"
    docker_plugin_socket: str = "/run/docker/plugins/meshd.sock"


class GossipSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[gossip]"""

    bind: str | None = None
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = GOSSIP_PORT
    seeds: tuple[str, ...] = ()
    keyring: str = "/etc/meshd/keyring"
    failed_rows_age_h: Annotated[float, msgspec.Meta(ge=0)] = 72.0


class VxlanSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[vxlan]"""

    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = VXLAN_PORT


class DockerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[docker]"""

    names: bool = False
    socket: str = "/run/docker.sock"


class PoolSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[pools]"""

    v4: tuple[str, ...] = ("10.128.0.0/9",)
    v6: tuple[str, ...] = ()


class FirewallSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[firewall]"""

    open_forward: bool = True


class DnsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[dns]"""

    upstream: tuple[str, ...] = ()


Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json"]
CHOICES = {"log.level": get_args(Level), "log.format": get_args(Format)}


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[log]"""

    level: Level = "info"
    format: Format = "auto"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. Every key has a default, so an empty file is a valid one."""

    host: HostSettings = HostSettings()
    gossip: GossipSettings = GossipSettings()
    vxlan: VxlanSettings = VxlanSettings()
    pools: PoolSettings = PoolSettings()
    firewall: FirewallSettings = FirewallSettings()
    dns: DnsSettings = DnsSettings()
    docker: DockerSettings = DockerSettings()
    log: LogSettings = LogSettings()


def parse(text: str, source: str) -> Settings:
    """Parse TOML text. Raises ConfigError, one line: file, key, what is wrong, what is allowed."""
    try:
        settings = msgspec.convert(tomllib.loads(text), Settings)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(source, str(error))) from None
    _check_values(settings, source)
    return settings


def _explain(source: str, message: str) -> str:
    """Turn msgspec's "... - at `$.gossip.port`" into "file: gossip.port: ..."."""
    what, _, where = message.partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    if "unknown field" in what:
        field = what.rsplit("`", 2)[-2]
        key = f"{key}.{field}" if key else field
        known = _known_keys(key)
        return f"{source}: {key}: unknown key" + (f" (allowed here: {known})" if known else "")
    for json_word, toml_word in ((" | null", ""), ("`object`", "a table"), ("`array`", "an array")):
        what = what.replace(json_word, toml_word)
    allowed = f" (allowed: {', '.join(CHOICES[key])})" if key in CHOICES else ""
    return f"{source}: {key or 'file'}: {what[:1].lower()}{what[1:]}{allowed}"


def _known_keys(key: str) -> str:
    """List the keys allowed beside ``key``."""
    table, _, _ = key.rpartition(".")
    owner: type = Settings
    for field in msgspec.structs.fields(Settings):
        if field.name == table and isinstance(field.type, type):
            owner = field.type
    return ", ".join(field.name for field in msgspec.structs.fields(owner))


def _check_values(settings: Settings, source: str) -> None:
    """Check what types cannot say: addresses and prefixes."""
    name = settings.host.name
    if name is not None and not re.fullmatch(HOST_NAME, name):
        raise ConfigError(
            f"{source}: host.name: {name[:NAME_MAX_CHARS]!r} is not a host name",
            f"1 to {NAME_MAX_CHARS} of A-Z, a-z, 0-9, '.' and '-', starting with a letter or digit",
        )
    plugin = settings.host.docker_plugin_socket
    for key, path in (
        ("host.state_dir", settings.host.state_dir),
        ("host.run_dir", settings.host.run_dir),
        *([("host.docker_plugin_socket", plugin)] if plugin else []),
        ("docker.socket", settings.docker.socket),
        ("gossip.keyring", settings.gossip.keyring),
    ):
        if not path.startswith("/") or "\0" in path:
            raise ConfigError(f"{source}: {key}: {path!r} is not an absolute path")
    for key, path in (
        ("host.run_dir", f"{settings.host.run_dir}/api.sock"),
        ("host.docker_plugin_socket", plugin),
    ):
        if len(path.encode()) > SUN_PATH_BYTES:
            raise ConfigError(
                f"{source}: {key}: {path} is too long: a socket's path has at most {SUN_PATH_BYTES} bytes"
            )
    if settings.gossip.bind is not None:
        bind = _address(settings.gossip.bind, source, "gossip.bind")
        if bind.is_unspecified or bind.is_multicast:
            raise ConfigError(
                f"{source}: gossip.bind: {bind} is no address that other hosts reach this one at",
                "see `ip address` for those this host has, or leave it out",
            )
        if bind.version == 6 and bind.is_link_local:
            raise ConfigError(
                f"{source}: gossip.bind: {bind} is link-local: it means nothing without an interface",
                "see `ip address` for those this host has, or leave it out",
            )
    if settings.vxlan.port == settings.gossip.port:
        raise ConfigError(
            f"{source}: vxlan.port: {settings.vxlan.port} is gossip.port too; both are UDP ports of this host"
        )
    for resolver in settings.dns.upstream:
        _address(resolver, source, "dns.upstream")
    for seed in settings.gossip.seeds:
        host, _, port = seed.rpartition(":")
        if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise ConfigError(f"{source}: gossip.seeds: {seed!r} is not ADDRESS:PORT, e.g. 192.0.2.2:7947")
        if ":" in host and (host[0], host[-1]) != ("[", "]"):  # its last group would be taken for the port
            raise ConfigError(
                f"{source}: gossip.seeds: {seed!r} has no brackets around its address, e.g. [2001:db8::2]:7947"
            )
        _address(host.strip("[]"), source, "gossip.seeds")
    for key, prefixes, version in (("pools.v4", settings.pools.v4, 4), ("pools.v6", settings.pools.v6, 6)):
        for prefix in prefixes:
            try:
                network = ipaddress.ip_network(prefix)
            except ValueError as error:
                raise ConfigError(f"{source}: {key}: {error}") from None
            if network.version != version:
                raise ConfigError(f"{source}: {key}: {prefix} is not an IPv{version} prefix")
            if network.prefixlen > (smallest := BRIDGE_PREFIX_V4 if version == 4 else ULA_PREFIX):
                raise ConfigError(
                    f"{source}: {key}: {prefix} has no room for any network: the smallest takes a /{smallest}"
                )


def _address(text: str, source: str, key: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"{source}: {key}: {text!r} is not an IPv4 or IPv6 address") from None
