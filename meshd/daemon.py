"""The composition root: builds every part from the settings, runs them in one nursery, stops them in order.

Start is recovery (design.md, section 7): load, adopt what the kernel holds, serve, then reconcile additive
first. There is no clean-shutdown step that correctness needs.
"""

import contextlib
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import structlog
import trio

from meshd import __version__
from meshd import log as logging
from meshd.api import activation, server
from meshd.api.activation import Passed
from meshd.api.cni import Cni
from meshd.config import (
    GC_THRESHOLDS,
    HOUSEKEEPING_S,
    LEAVE_LINGER_S,
    NAME_MAX_CHARS,
    RESTART_ANNOUNCED_S,
    SWITCH_INTERVAL_S,
    UNDERLAY_CHECK_S,
    VANISHED_GRACE_S,
    Settings,
)
from meshd.errors import ConfigError, Expelled, MeshdError, StateError, Unavailable
from meshd.kernel.namespace import Namespace
from meshd.kernel.neighlimits import NeighLimit
from meshd.kernel.underlay import Underlay
from meshd.model import (
    FIRST_LOCAL_KIND,
    HOST_NETNS,
    Address,
    EndpointId,
    Forgotten,
    HostFacts,
    HostId,
    Item,
    Key,
    Kind,
    MemberFacts,
)
from meshd.node import Node
from meshd.plan import names
from meshd.plan.ops import Op
from meshd.shell import (
    attach,
    bridgeports,
    disk,
    docker,
    dockernames,
    farewell,
    held,
    hostaccess,
    identity,
    limits,
    netupdate,
    networks,
    space,
)
from meshd.shell.bridgekeep import Keeper
from meshd.shell.cluster import Cluster, cluster_id
from meshd.shell.gossip import Gossip, bind, keep_junk_out
from meshd.shell.journal import DiskWriter, Journal
from meshd.shell.notify import keep_told, notify, notify_surely, status_line
from meshd.shell.orphans import Orphans
from meshd.shell.ownaddress import OwnAddress
from meshd.shell.reconcile import Reconciler
from meshd.shell.reload import reload
from meshd.shell.streams import Streams
from meshd.shell.watchdog import Watchdog, period_of
from meshd.state.store import Store
from meshd.wire import keys
from meshd.wire.stream import Channel

log = structlog.get_logger()


def main(settings: Settings, source: Path) -> bool:
    """Run until SIGTERM, SIGINT or leave; True for leave. Raises MeshdError for what an operator must mend."""
    logging.configure(settings.log)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return trio.run(_run, settings, source)


async def _run(settings: Settings, source: Path) -> bool:
    state_dir, run_dir = Path(settings.host.state_dir), Path(settings.host.run_dir)
    watchdog = Watchdog(period_of(os.environ, os.getpid()))
    notify("STATUS=loading the state")
    with _errors_one_by_one(), contextlib.ExitStack() as stack:
        passed = stack.enter_context(activation.passed())
        stack.callback(os.close, identity.lock(state_dir))
        ring = load_ring(Path(settings.gossip.keyring), state_dir)
        who = identity.load(
            state_dir, keys.cluster_secret(ring.primary), os.urandom, _read("/etc/machine-id")
        )
        namespace = Namespace(settings.vxlan.port)
        stack.callback(namespace.close)
        watch = stack.enter_context(namespace.watch())
        namespace.read_ahead()  # 2 s of the kernel's at 100,000 endpoints, while the state is loaded
        journal = Journal(state_dir)
        with disk.refusals(state_dir / "journal"):
            entries = journal.load()
        stack.callback(journal.close)
        store = replay(entries, who.secret)
        _check_not_forgotten(store, who.host, state_dir)
        mark = names.cluster_mark(cluster_id(who.secret))
        underlay = namespace.underlay(settings.gossip.bind, mark)
        address = Address(underlay.address, settings.gossip.port)
        udp = stack.enter_context(bind(address, socket.SOCK_DGRAM))
        tcp = stack.enter_context(bind(address, socket.SOCK_STREAM))
        for note in journal.notes:
            log.warning("state", note=note)
        name = settings.host.name or socket.gethostname()[:NAME_MAX_CHARS]
        facts = MemberFacts(
            name=name, address=address.packed, port=address.port, session=os.urandom(16), software=__version__
        )
        writer = DiskWriter(journal)
        writer.keep_reserve()
        cluster = Cluster(
            me=who.host, settings=settings, store=store, disk=writer, entropy=os.urandom,
            boot_id=_read("/proc/sys/kernel/random/boot_id"), mark=mark, secret=who.secret,
            gossip_port=address.port, nhid=namespace.supports_fdb_nexthops(), kernel=namespace,
        )  # fmt: skip
        now = trio.current_time()
        node = Node(
            me=who.host, facts=facts, incarnation=time.time_ns() // 1_000_000, store=store, keyring=ring,
            entropy=os.urandom, rng=Random(os.urandom(16)), now=now, wall_offset_s=time.time() - now,
            seeds=_seeds(settings),
        )  # fmt: skip
        keep_junk_out(udp, node.sealer.tag)
        cluster.gossip = Gossip(node, udp, cluster.on_event, watchdog.loop("gossip"))
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(tcp))
        cluster.streams = Streams(cluster.gossip, lambda peer: _channel(node, facts.session, peer), listener)
        own = OwnAddress(cluster, address, lambda found: host_facts(cluster, found, name))
        keeper = Keeper(cluster)

        def others() -> None:
            own.changed()
            keeper.changed()

        def repaired(ops: Sequence[Op]) -> None:
            cluster.tell.repaired(ops)
            keeper.changed()  # a bridge made anew lacks its ports

        cluster.reconciler = Reconciler(
            namespace, watch, cluster.view,
            deletions_allowed=lambda: node.in_sync(cluster.now()), on_repair=repaired,
            on_fight=cluster.tell.fought_over, on_others=others, on_gates=cluster.tell.passed_through, loop=watchdog.loop("netlink"),
        )  # fmt: skip
        use_cases(cluster)
        cluster.reload = lambda: reload(cluster, source, _seeds)
        cluster.adopt(now)
        del entries
        gc.freeze()  # what was loaded stays for good
        if not (who.new or journal.found):
            node.distrust(
                "this host has an identity but neither journal nor snapshot: its state was lost", now
            )
        if who.cloned:
            cluster.alarm(
                "cloned-image", "the state on this disk was another machine's: this host has a new identity"
            )
        cluster.offload.devices = namespace.offload(underlay.cards)
        facts_now = host_facts(cluster, underlay, name)
        await _serve(cluster, writer, own, keeper, facts_now, run_dir, source, passed, watchdog)
        return cluster.left.is_set()
    raise AssertionError("unreachable: an error is raised, never swallowed")


def _check_not_forgotten(store: Store, me: HostId, state_dir: Path) -> None:
    """Raise Expelled where this host, as far as it knows, is no part of the cluster any more."""
    item = store.get(Kind.FORGOTTEN, me)
    if item is not None and isinstance(item.body, Forgotten):
        raise Expelled(
            f"{farewell.told(item.body)}; nothing was started",
            f"to come again as a new host: move {state_dir} away, then start meshd",
        )


def use_cases(cluster: Cluster) -> None:
    """Give the cluster the use cases that events start."""

    async def release(endpoint: EndpointId) -> object:
        return await attach.detach(cluster, endpoint, force=True)

    async def gone(network: bytes) -> None:
        await networks.on_endpoint_gone(cluster, network)
        item = cluster.store.get(Kind.NETWORK, network)
        if item is not None and not item.dead:
            cluster.background(hostaccess.keep, cluster, item)

    cluster.answer_block_ask = lambda peer, ask: space.answer_block_ask(cluster, peer, ask)
    cluster.answer_subnet_ask = lambda peer, ask: netupdate.answer_subnet_ask(cluster, peer, ask)

    async def removed(network: Item) -> None:
        await networks.keep_if_in_use(cluster, network)

    cluster.release = release
    cluster.network_removed = removed
    cluster.endpoint_gone = gone


async def _serve(
    cluster: Cluster,
    writer: DiskWriter,
    own: OwnAddress,
    keeper: Keeper,
    facts: HostFacts,
    run_dir: Path,
    source: Path,
    passed: Passed,
    watchdog: Watchdog,
) -> None:
    async with trio.open_nursery() as nursery:
        cluster.start(nursery)
        nursery.start_soon(writer.run, cluster.store.everything)
        nursery.start_soon(cluster.gossip.run)
        nursery.start_soon(cluster.lag.run)
        nursery.start_soon(cluster.holds.run, cluster)
        nursery.start_soon(cluster.streams.serve)
        try:
            await cluster.publish_facts(facts)
        except Unavailable as error:  # a host whose disk is full serves what it has
            log.warning("start", error=error.what)
        cluster.gossip.underlay(facts.underlay_mtu)
        await _ensure_bridge(cluster)
        await attach.release_other_boots(cluster)
        await bridgeports.recover(cluster)
        docker.keep_all_aux(cluster)
        api = await server.open_api(cluster, run_dir, passed.take("api"), watchdog.loop("api"))
        await nursery.start(api.serve)
        cni_server, cni = await server.open_cni(cluster, run_dir, passed.take("cni"), watchdog.loop("cni"))
        await nursery.start(cni_server.serve)
        if cluster.settings.docker.names:
            nursery.start_soon(dockernames.Names(cluster, cluster.settings.docker.socket).run)
        plugin = _docker(cluster, passed, watchdog)
        if plugin is not None:
            await nursery.start(plugin.run)
        for unserved in passed.close():
            log.warning("a socket that systemd passes is not served", name=unserved)
        notify("STATUS=reading and adopting what the kernel holds")
        await cluster.reconciler.start()
        nursery.start_soon(cluster.reconciler.run)
        nursery.start_soon(keeper.run)
        cluster.forwarding = await cluster.reconciler.in_kernel_thread(cluster.kernel.forwarding)
        nursery.start_soon(own.run)
        nursery.start_soon(cluster.offload.run, cluster)
        nursery.start_soon(_keep_house, cluster, cni, writer)
        await cni.catch_up()
        cluster.ready = True
        log.info(
            "ready",
            host=facts.name,
            id=cluster.me.hex(),
            config=str(source),
            endpoints=len(cluster.attachments),
        )
        await notify_surely("READY=1", status_line(cluster))
        nursery.start_soon(watchdog.run, notify, "WATCHDOG=1")
        nursery.start_soon(keep_told, cluster)
        await _until_stopped(cluster)
        notify("STOPPING=1")
        await bridgeports.stop(cluster)
        await api.stop()
        if plugin is not None:
            await plugin.stop()
        await cni_server.stop()
        with trio.move_on_after(LEAVE_LINGER_S):
            await writer.flush()
        nursery.cancel_scope.cancel()


def _docker(cluster: Cluster, passed: Passed, watchdog: Watchdog) -> server.DockerServer | None:
    """Make the server of Docker's plugin socket, unless the configuration turns it off."""
    path = cluster.settings.host.docker_plugin_socket
    if not path:
        return None

    def troubled(why: str) -> None:
        if why:
            cluster.alarm(NO_DOCKER, f"{why}: systemctl enable --now meshd-docker.socket")
        else:
            cluster.calm(NO_DOCKER)

    return server.DockerServer(cluster, path, passed.take("docker"), troubled, watchdog.loop("docker"))


NO_DOCKER = "no-docker"


async def _until_stopped(cluster: Cluster) -> None:
    """Wait for SIGTERM, SIGINT or leave. The data plane is left as it is; only leave has emptied it."""

    async def signalled(scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    _hup(cluster)
                    continue
                log.info("stopping", signal=signal.Signals(number).name)
                cluster.node.restarting(cluster.now(), RESTART_ANNOUNCED_S)
                cluster.gossip.pump()
                scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(signalled, nursery.cancel_scope)
        await cluster.left.wait()
        await cluster.reconciler.settled()
        await trio.sleep(LEAVE_LINGER_S)  # whoever asks whether it was heard gets an answer
        nursery.cancel_scope.cancel()


def _hup(cluster: Cluster) -> None:
    """Reload, and tell the service manager that asked (sd_notify(3))."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        cluster.reload()
    except MeshdError as error:
        log.error("not reloaded: nothing was changed", error=error.what, hint=error.hint)
    notify("READY=1")


def _tell_of_disk(cluster: Cluster, writer: DiskWriter) -> None:
    """Raise or take back the alarm about the disk, and have it tried again."""
    if writer.trouble:
        where = cluster.settings.host.state_dir
        text = f"the state cannot be written to {where}: {writer.trouble}; until it can, nothing new is made here"
        cluster.alarm(DISK, text)
        writer.look_again()
    else:
        cluster.calm(DISK)


DISK = "disk"


async def _keep_house(cluster: Cluster, cni: Cni, writer: DiskWriter) -> None:
    """What nobody asks for but must happen: endpoints whose link is gone, tombstones, limits that come near."""
    checked = cluster.now()
    limits_first: dict[int, NeighLimit] = {}
    moved: set[EndpointId] = set()
    since: dict[EndpointId, float] = {}
    orphans = Orphans()
    while True:
        await trio.sleep(HOUSEKEEPING_S)
        now = cluster.now()
        _tell_of_disk(cluster, writer)
        try:
            await cni.catch_up()
            await attach.release_vanished(cluster, cluster.reconciler.vanished(now))
            await attach.release_vanished(cluster, await _never_moved(cluster, moved, since))
            _tell_orphans(cluster, await orphans.look(cluster))
            held.expire(cluster)
            await networks.finish_removals(cluster)
            await _ensure_bridge(cluster)
            if cluster.node.in_sync(now):
                for endpoint in _lost(cluster):
                    log.info(
                        "endpoint released: this host has no record of where it was", endpoint=endpoint.hex()
                    )
                    await cluster.release(endpoint)
            await cluster.publish_facts(cluster.own_facts)  # where the disk refused that before
            if cluster.forgotten and cluster.node.in_sync(now):
                await farewell.take_over(cluster)
            await cluster.collect_tombstones()
            cluster.age_rows()
            if now - checked >= UNDERLAY_CHECK_S:
                checked = now
                await _check_limits(cluster, limits_first)
            await hostaccess.keep_all(cluster)  # last: without a free address it fails, each time
        except MeshdError as error:
            log.warning("housekeeping", error=error.what)
        cluster.mtu.look(cluster)


def _tell_orphans(cluster: Cluster, said: str) -> None:
    """Raise or take back the alarm about endpoints that lost their device with its parent."""
    if said:
        cluster.alarm("parent-gone", said)
    else:
        cluster.calm("parent-gone")


async def _ensure_bridge(cluster: Cluster) -> None:
    """Make the default bridge where there is none. A pool without a free prefix (the host routes all of it, say)
    keeps nothing else from working, and may be free again later."""
    try:
        await networks.ensure_default_bridge(cluster)
    except Unavailable as error:
        cluster.alarm(NO_BRIDGE, f"there is no network bridge on this host: {error.what}")
    else:
        cluster.calm(NO_BRIDGE)


NO_BRIDGE = "no-bridge"


async def _check_limits(cluster: Cluster, first: dict[int, NeighLimit]) -> None:
    """Raise or take back the alarm about the kernel's neighbour tables. ``first`` keeps what was read first."""
    now = await cluster.reconciler.in_kernel_thread(cluster.kernel.neighbour_limits)
    if not first:
        first.update(now)
    trouble = limits.neighbour_trouble(limits.neighbours_needed(cluster), now, first)
    if trouble:
        cluster.alarm("neighbours", trouble)
    else:
        cluster.calm("neighbours")


def _lost(cluster: Cluster) -> list[EndpointId]:
    """List endpoints that peers say are here and of which this host has no attachment: its state was lost."""
    return [e for e in cluster.endpoints.of(cluster.me) if e not in cluster.attachments]


async def _never_moved(
    cluster: Cluster, moved: set[EndpointId], since: dict[EndpointId, float]
) -> list[EndpointId]:
    """List endpoints whose caller went away between our answer and moving the peer: it is still in our namespace.
    ``moved`` remembers those whose peer has been seen to be gone, so that each is asked for only until then; ``since``
    when each was first looked at, since what an endpoint says of its age is the wall clock's, which may jump."""
    now = cluster.now()
    for gone in since.keys() - cluster.attachments.keys():
        del since[gone]
    cluster.desk.left &= cluster.attachments.keys()
    moved &= cluster.attachments.keys() - cluster.desk.left
    asked = {
        attachment.peer_if: id_
        for id_, attachment in cluster.attachments.items()
        if attachment.netns_cookie != HOST_NETNS
        and id_ not in moved
        and id_ in cluster.endpoints
        and now - since.setdefault(id_, now) >= VANISHED_GRACE_S
    }
    if not asked:
        return []
    here = await cluster.reconciler.in_kernel_thread(cluster.kernel.links_exist, list(asked))
    moved |= {id_ for name, id_ in asked.items() if name not in here}
    return [asked[name] for name in sorted(here)]


def host_facts(cluster: Cluster, underlay: Underlay, name: str) -> HostFacts:
    """Say what this host is."""
    return HostFacts(
        name=name,
        vtep=Address(underlay.address, 0).packed,
        vxlan_port=cluster.settings.vxlan.port,
        underlay_mtu=underlay.mtu,
        routes=underlay.routes[:64],
    )


def replay(entries: list[Item | Key], secret: bytes) -> Store:
    """Build the store that these journal entries describe, oldest first."""
    store = Store(secret)
    for entry in entries:
        if isinstance(entry, Item):
            store.merge(entry)
        elif entry.kind >= FIRST_LOCAL_KIND:
            store.drop(entry)
    return store


def load_ring(path: Path, state_dir: Path) -> keys.Keyring:
    """Return the live keyring of state_dir; the first start makes it from the operator's file."""
    live = state_dir / "keyring"
    kept = disk.read(live)
    if kept is not None:
        try:
            return keys.parse_keyring(kept.decode(errors="replace"), str(live))
        except ConfigError as error:
            raise StateError(
                f"{error.what}; nothing was changed",
                "restore it from a backup, or remove it: the [gossip] keyring seeds it",
            ) from None
    ring = keys.parse_keyring(disk.read_operators(path), str(path))
    disk.write(live, keys.format_keyring(ring))
    return ring


def _channel(node: Node, session: bytes, peer: HostId | None) -> Channel:
    ring = node.sealer.keyring
    if peer is None:
        return Channel.responder(node.me, session, ring, os.urandom)
    return Channel.initiator(node.me, session, ring, os.urandom, peer)


def _seeds(settings: Settings) -> list[Address]:
    parts = [text.rpartition(":") for text in settings.gossip.seeds]
    return [Address(host.strip("[]"), int(port)) for host, _, port in parts]


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def _errors_one_by_one() -> Iterator[None]:
    """Unwrap an exception group that holds one MeshdError, for the one line that main prints."""
    try:
        yield
    except BaseExceptionGroup as group:
        found = group.subgroup(MeshdError)
        error: BaseException | None = found
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is None:
            raise
        raise error from None
