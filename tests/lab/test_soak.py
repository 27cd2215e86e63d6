"""What the soak says of the monitors' growth."""
from typing import List

from .soak import Sample, compare


def samples(resident: List[int], descriptors: List[int]) -> List[Sample]:
    return [Sample('secondary', 7, 10.0 * number, memory, 2, count)
            for number, (memory, count) in enumerate(zip(resident, descriptors))]


def test_a_leak_is_growth_and_what_comes_and_goes_is_none() -> None:
    steady = compare('it', samples([70000, 90000, 70100, 70200] * 4, [11, 15, 15, 15] * 4))
    leaking = compare('it', samples([70000 + 200 * number for number in range(16)], list(range(11, 27))))

    assert [one.of for one in steady if one.has_grown] == []
    assert [one.of for one in leaking if one.has_grown] == ['resident', 'descriptors']


def test_too_few_samples_tell_nothing() -> None:
    assert compare('it', samples([70000] * 3, [11] * 3)) == []
