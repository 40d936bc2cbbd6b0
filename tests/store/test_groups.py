from __future__ import annotations

import random
import tracemalloc

import pytest

from clipkit.store.groups import Group, Groups


@pytest.mark.parametrize("limit", [10_000, 10**9])
def test_memory_and_disk_agree(limit: int) -> None:
    draw = random.Random(0)
    groups = Groups(memory_limit_bytes=limit)
    expected: dict[str, tuple[int, list[str]]] = {}
    for row in range(3000):
        key, texts = f"k{draw.randrange(500)}", [f"línea\n{row}", '"'][: draw.randrange(3)]
        groups.add(key, row, texts)
        expected.setdefault(key, (row, []))[1].extend(texts)
    assert groups.on_disk == (limit == 10_000)
    assert len(groups) == len(expected)
    assert "k1" in groups
    assert "nothing" not in groups
    assert groups.first("k1") == expected["k1"][0]
    assert groups.first("nothing") is None
    assert list(groups) == [Group(key, first, tuple(texts)) for key, (first, texts) in expected.items()]


def test_memory_is_bounded() -> None:
    tracemalloc.start()
    groups = Groups(memory_limit_bytes=2_000_000)
    for row in range(50_000):
        groups.add(f"image {row // 5}", row, ["a caption of some length, of which there are many " * 2])
    assert sum(len(group.texts) for group in groups) == 50_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000
