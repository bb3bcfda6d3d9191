"""How many requests were answered, of flows of any length."""

from meshctl.ping import answered


def test_a_flow_longer_than_sixteen_bits_is_counted_in_full():
    shown = [number & 0xFFFF for number in range(1, 200_001)]
    assert answered(shown) == set(range(1, 200_001))


def test_what_is_lost_late_or_twice_is_told_apart_across_the_turn_of_the_numbers():
    sent = range(1, 131_200)
    came = [number for number in sent if number not in (5, 65_536, 131_000)]
    came[65_540], came[65_541] = came[65_541], came[65_540]
    came.insert(65_600, came[65_500])
    assert set(sent) - answered(number & 0xFFFF for number in came) == {5, 65_536, 131_000}
