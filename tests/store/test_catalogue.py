from __future__ import annotations

from clipkit.store.catalogue import IdCatalogue


def test_ids_are_known_in_memory_and_on_disk() -> None:
    catalogue = IdCatalogue(max_in_memory=100)
    assert all(catalogue.add(f"image {number}", number) for number in range(1050))
    assert not any(catalogue.add(f"image {number}") for number in range(1050))
    assert [catalogue.row(f"image {number}") for number in (0, 99, 100, 1049)] == [0, 99, 100, 1049]
    assert "image 1050" not in catalogue
    assert catalogue.row("another") is None
