"""The digest is order-free, exact, and its buckets fold."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from meshd.config import BUCKET_ITEMS, SPLITS_A_PUT
from meshd.model import Key, Version
from meshd.spread.digest import DigestTable, bucket_of

SECRET = b"s" * 32
keys = st.builds(Key, st.integers(1, 5), st.binary(min_size=16, max_size=16))
versions = st.builds(Version, st.integers(0, 2**63), st.integers(0, 9), st.binary(min_size=16, max_size=16))


def table(entries):
    made = DigestTable(SECRET)
    for key, version in entries:
        made.put(key, version)
    return made


@given(st.dictionaries(keys, versions, max_size=60), st.randoms())
def test_the_order_of_arrival_does_not_show(entries, random):
    shuffled = list(entries.items())
    random.shuffle(shuffled)
    assert table(entries.items()).root == table(shuffled).root


@given(st.dictionaries(keys, versions, min_size=1, max_size=40), st.data())
def test_removing_is_as_if_it_had_never_been_there(entries, data):
    gone = data.draw(st.sampled_from(sorted(entries)))
    made = table(entries.items())
    made.remove(gone)
    assert made.root == table((k, v) for k, v in entries.items() if k != gone).root
    assert len(made) == len(entries) - 1


@given(st.dictionaries(keys, versions, min_size=1, max_size=40), st.data())
def test_one_changed_version_changes_the_root_and_one_bucket(entries, data):
    key = data.draw(st.sampled_from(sorted(entries)))
    before, after = table(entries.items()), table(entries.items())
    after.put(key, entries[key]._replace(counter=entries[key].counter + 1))
    assert before.root != after.root
    count = 16
    old, new = before.hashes(count), after.hashes(count)
    differ = [i for i in range(count) if old[8 * i : 8 * i + 8] != new[8 * i : 8 * i + 8]]
    assert differ == [bucket_of(key, count)]


def test_another_secret_gives_another_digest():
    key, version = Key(1, bytes(16)), Version(1, 0, bytes(16))
    other = DigestTable(b"t" * 32)
    other.put(key, version)
    assert other.root != table([(key, version)]).root


@given(st.integers(0, 2**32), st.sampled_from([1, 2, 4, 8, 64, 256]))
def test_buckets_of_any_count_are_the_same_whatever_count_is_kept(seed, count):
    random = Random(seed)
    entries = {
        Key(random.randrange(1, 6), random.randbytes(16)): Version(n, 0, bytes(16)) for n in range(300)
    }
    grown = table(entries.items())
    assert grown.count > 1
    small = DigestTable(SECRET)
    small._grow = lambda: None  # the same content, kept in one bucket
    for key, version in entries.items():
        small.put(key, version)
    assert grown.hashes(count) == small.hashes(count)
    for bucket in {0, count // 2, count - 1}:
        expected = {key for key in entries if bucket_of(key, count) == bucket}
        assert set(grown.keys_in([bucket], count)) == expected == set(small.keys_in([bucket], count))


def test_growing_costs_each_item_a_few_buckets_and_at_every_moment_the_table_is_right():
    made, random = DigestTable(SECRET), Random(1)
    split, entries = [0], {}
    plain = made._split

    def counted(bucket):
        split[-1] += len(bucket.keys)
        return plain(bucket)

    made._split = counted
    for number in range(3000):
        key = Key(3, random.randbytes(16))
        entries[key] = Version(number, 0, bytes(16))
        made.put(key, entries[key])
        if number % 3 == 2:  # what is changed and what goes, also while half the buckets are split
            gone, changed = random.sample(sorted(entries), 2)
            made.remove(gone)
            del entries[gone]
            entries[changed] = Version(number, 1, bytes(16))
            made.put(changed, entries[changed])
        split.append(0)
        if number % 100 == 0:
            small = DigestTable(SECRET)
            small._grow = lambda: None
            for each, version in entries.items():
                small.put(each, version)
            assert (made.root, made.hashes(made.count)) == (small.root, small.hashes(made.count))
    assert made.count >= 128
    assert max(split) < 2 * SPLITS_A_PUT * 10 * BUCKET_ITEMS, "a few buckets, however many there are"
