"""How news travels and heals, with whole nodes in a simulated network. Figures are printed (pytest -s)."""

from world import cluster

from meshd.model import Item, Kind, Network, Subnet, Version


def everywhere(world, item):
    return all(
        (held := host.store.get(item.kind, item.id)) is not None and held.version >= item.version
        for host in world.running()
    )


def test_news_reaches_all_within_a_few_round_trips():
    world = cluster(1, 60)
    worst = 0.0
    for n in range(20):
        item = world.write(world.hosts[n], f"-{n}")
        worst = max(worst, world.run_until(lambda i=item: everywhere(world, i), 1.0, world.latency_s / 4))
    print(f"\nnews at the last of 60: worst of 20 {worst / (2 * world.latency_s):.1f} round trips")
    assert worst < 10 * 2 * world.latency_s


def test_whatever_loss_swallowed_is_healed_by_digests(seed):
    world = cluster(seed, 20, loss=0.3)
    for step in range(40):
        world.write(world.hosts[step % 20], f"-{step}")
        world.run(0.1)
    took = world.run_until(world.converged, 20)
    print(f"\nseed {seed}: equal {took:.2f} s after the last write, at 30 % loss")


def test_a_host_cut_off_while_others_write_catches_up(seed):
    world = cluster(seed, 10, loss=0.05)
    away = world.hosts[7]
    world.split(world.hosts[:7] + world.hosts[8:])
    for step in range(100):
        world.write(world.hosts[step % 7], f"-{step}")
        world.write(away, f"-{step}")
        world.run(0.2)
    world.heal()
    took = world.run_until(lambda: world.converged() and world.all_alive(), 30)
    print(f"\nseed {seed}: caught up {took:.2f} s after coming back")
    assert world.hosts[0].store.get(Kind.HOST, away.id).body.name == "host7-99"


def test_an_item_that_no_datagram_carries_reaches_everybody_by_stream():
    world = cluster(2, 30, loss=0.05)
    fetched = world.carried["fetches"]
    labels = {f"label-{n}": "v" * 1000 for n in range(50)}
    body = Network("big", "overlay", (Subnet("10.1.0.0/20", "10.1.0.1"),), labels=labels)
    item = Item(Kind.NETWORK, b"n" * 16, Version(0, 0, world.hosts[0].id), body)
    world.put(world.hosts[0], item)
    took = world.run_until(lambda: everywhere(world, item), 5.0, world.latency_s)
    print(f"\n50 kB at the last of 30: {took:.3f} s, {world.carried['fetches'] - fetched} fetches")
    assert world.carried["fetches"] - fetched <= 2 * 30, "each fetches it of one neighbour, not of all"


def test_an_idle_cluster_is_quiet_and_its_cost_a_host_does_not_grow(seed):
    rates = []
    for count in (10, 40):
        world = cluster(seed, count)
        world.run(10)
        before = world.carried["bytes"]
        world.run(30)
        rates.append((world.carried["bytes"] - before) / 30 / count)
    print(f"\nidle: {rates[0]:.0f} and {rates[1]:.0f} bytes a second a host, at 10 and 40 hosts")
    assert rates[1] < 1.2 * rates[0]
