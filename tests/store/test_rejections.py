from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clipkit.store.rejections import read_rejections, record_rejections


def test_datasets_that_share_the_file_do_not_lose_each_others_lines(tmp_path: Path) -> None:
    def record(number: int) -> None:
        for attempt in range(5):
            line = {"id": f"{number}-{attempt}", "source": "captions.txt:1", "reason": "missing"}
            record_rejections(str(tmp_path / f"{number}.lance"), [line], settled=())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(record, range(8)))
    names = {(line["dataset"], line["id"]) for line in read_rejections(tmp_path / "rejected.jsonl")}
    assert names == {(f"{number}.lance", f"{number}-{attempt}") for number in range(8) for attempt in range(5)}
    for number in range(8):
        record_rejections(str(tmp_path / f"{number}.lance"), [], settled=None)
    assert list(tmp_path.iterdir()) == []
