"""Merging of equal pages: begun with the testbed that asks for it, and as it was before when that ends."""

from __future__ import annotations

import pytest

from failavoid.shared import merging


@pytest.fixture
def ksm(tmp_path):
    folder = tmp_path / "ksm"
    folder.mkdir()
    (folder / "run").write_text("0\n")
    (folder / "pages_to_scan").write_text("100\n")
    return folder


def values(ksm):
    return (ksm / "run").read_text().strip(), (ksm / "pages_to_scan").read_text().strip()


def test_it_is_begun_once_and_ends_as_it_was(ksm, tmp_path):
    record = tmp_path / "merging.json"
    assert merging.begin(record, ksm)
    assert values(ksm) == ("1", str(merging.PAGES_TO_SCAN))
    assert not merging.begin(record, ksm)
    assert merging.end(record, ksm)
    assert values(ksm) == ("0", "100")
    assert not merging.end(record, ksm)


def test_a_machine_that_merges_anyway_goes_on(ksm, tmp_path):
    (ksm / "run").write_text("1\n")
    record = tmp_path / "merging.json"
    merging.begin(record, ksm)
    merging.end(record, ksm)
    assert values(ksm) == ("1", "100")


def test_a_testbed_that_never_asked_for_it_changes_nothing(ksm, tmp_path):
    assert not merging.end(tmp_path / "merging.json", ksm)
    assert values(ksm) == ("0", "100")
