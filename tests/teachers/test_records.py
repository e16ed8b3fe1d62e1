"""Records are read as they were written, at their place and on their shelf, or not at all."""

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from distilens.foundation.errors import UserError
from distilens.foundation.files import read_json, write_json
from distilens.teachers import records as module
from distilens.teachers.records import SPARE, Different, Shelf, check_same, sums

IMAGES = 50
FIELDS = [("label", "<i4"), ("values", "<f2", (3, 2))]


def shelf(folder, *, made_from=None, name="logits", images=IMAGES) -> Shelf:
    return Shelf(folder, name, made_from or {"model": "a", "size": [1, 2]}, FIELDS, images, (3, 2))


def content(shelf: Shelf, rows, seed: int = 0) -> np.ndarray:
    """Records whose content depends on the row and the seed."""
    records = np.zeros(len(rows), shelf.dtype)
    for record, row in zip(records, rows, strict=True):
        drawn = np.random.default_rng([seed, int(row)])
        record["label"], record["values"] = row, drawn.standard_normal((3, 2))
    return records


def written(shelf: Shelf, rows, seed: int = 0) -> np.ndarray:
    rows = np.asarray(rows)
    records = content(shelf, rows, seed)
    shelf.write(rows, records)
    return records


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return all(np.array_equal(found[field], expected[field]) for field in ("label", "values"))


def read(folder, rows, **options) -> tuple[np.ndarray, list[bool], list[int]]:
    """By somebody who has just come: records, which are valid, and which are damaged."""
    opened = shelf(folder, **options)
    records, valid = opened.read(np.asarray(rows))
    return records, valid.tolist(), list(opened.damaged)


# what is written is read


@pytest.mark.parametrize(
    "rows", [[0], [3, 4, 5], [5, 4, 3], [49, 0, 20, 21, 7], list(range(50)), [120, 3, 149], [2, 2, 9]]
)
def test_what_is_written_is_read_whatever_the_order(tmp_path, rows):
    opened = shelf(tmp_path)
    records = written(opened, rows)
    for found, valid in (opened.read(np.asarray(rows)), read(tmp_path, rows)[:2]):
        assert all(valid)
        assert same(found, records)
    others = np.setdiff1d(np.arange(200), rows)
    _, valid, damaged = read(tmp_path, others)
    assert not any(valid)
    assert damaged == []  # what was never written is no damage


def test_nothing_is_there_before_it_is_written(tmp_path):
    opened = shelf(tmp_path)
    _, valid = opened.read(np.arange(10))
    assert not valid.any() and not opened.damaged and opened.taken == 0
    assert len(opened.read(np.zeros(0, np.int64))[0]) == 0
    opened.write(np.zeros(0, np.int64), content(opened, []))
    assert not opened.read(np.arange(10))[1].any()


def test_variants_of_an_image_and_the_untransformed_one_have_records_of_their_own(tmp_path):
    opened = shelf(tmp_path)
    index = np.arange(IMAGES)
    rows = [opened.rows(index, variant) for variant in (None, 0, 1, 7)]
    assert len(np.unique(np.concatenate(rows))) == 4 * IMAGES
    assert rows[0].tolist() == index.tolist()
    assert rows[3].tolist() == (8 * IMAGES + index).tolist()
    written(opened, rows[2])
    assert opened.filled(index, 1).all()
    assert not any(opened.filled(index, variant).any() for variant in (None, 0, 2, 7, 100))
    assert opened.name_of(int(rows[0][4])) == "image 4"
    assert opened.name_of(int(rows[3][49])) == "image 49 variant 7"


def test_filled_is_the_same_in_pieces(tmp_path, monkeypatch):
    opened = shelf(tmp_path)
    chosen = np.random.default_rng(0).permutation(IMAGES)[:20]
    written(opened, chosen)
    for at_once in (1, 7, 50, 1000):
        monkeypatch.setattr(module, "AT_ONCE", at_once * opened.dtype.itemsize)
        filled = opened.filled(np.arange(IMAGES), None)
        assert np.flatnonzero(filled).tolist() == sorted(chosen.tolist())
    assert len(opened.filled(np.zeros(0, np.int64), None)) == 0


def test_a_place_that_was_never_written_takes_no_room(tmp_path):
    opened = shelf(tmp_path, images=10**7)
    written(opened, opened.rows(np.array([10**7 - 1]), 20), 0)
    assert opened.path.stat().st_size > 10**9
    assert opened.taken < 10**5


def test_what_another_one_writes_later_is_seen(tmp_path):
    first, second = shelf(tmp_path), shelf(tmp_path)
    first.read(np.arange(10))
    records = written(second, [3])
    assert first.read(np.array([3]))[1].all()  # the file was not there before
    written(second, [2])
    assert first.read(np.array([2]))[1].all()  # within what is mapped
    written(second, [40])
    found, valid = first.read(np.array([40, 3, 41]))  # behind it
    assert valid.tolist() == [True, True, False]
    assert same(found[1:2], records)


def test_writing_again_replaces(tmp_path):
    opened = shelf(tmp_path)
    written(opened, [1, 2, 3])
    records = written(opened, [2], seed=9)
    found, valid, _ = read(tmp_path, [1, 2, 3])
    assert all(valid)
    assert same(found[1:2], records) and same(found[[0, 2]], content(opened, [1, 3]))


def test_records_of_nothing_but_zeros_are_told_from_holes(tmp_path):
    opened = shelf(tmp_path)
    opened.write(np.arange(IMAGES), np.zeros(IMAGES, opened.dtype))
    assert opened.read(np.arange(IMAGES))[1].all()
    assert not opened.read(np.arange(IMAGES, 60))[1].any()


def test_no_sum_is_that_of_a_hole(monkeypatch):
    records = np.zeros(3, np.dtype([("sum", "<u4"), ("values", "<f4", (2,))]))
    monkeypatch.setattr(module.zlib, "crc32", lambda *given: 0)
    assert sums(records, np.arange(3), 5).tolist() == [1, 1, 1]


# damage


def test_any_byte_that_changes_is_noticed(tmp_path):
    opened = shelf(tmp_path)
    written(opened, np.arange(6))
    whole = opened.path.read_bytes()
    size = opened.dtype.itemsize
    chance = np.random.default_rng(1)
    for place in range(2 * size, 3 * size):
        broken = bytearray(whole)
        broken[place] ^= int(chance.integers(1, 256))
        opened.path.write_bytes(broken)
        _, valid, damaged = read(tmp_path, np.arange(6))
        assert valid == [True, True, False, True, True, True], place
        assert damaged == [2]


def test_any_bit_that_changes_is_noticed_in_long_records_too(tmp_path):
    opened = Shelf(tmp_path, "maps", {}, [("values", "<f2", (16, 16))], 4, (16, 16))
    records = np.zeros(4, opened.dtype)
    records["values"] = np.random.default_rng(0).standard_normal((4, 16, 16))
    opened.write(np.arange(4), records)
    whole = np.frombuffer(opened.path.read_bytes(), np.uint8).reshape(4, -1)
    chance = np.random.default_rng(2)
    for _ in range(300):
        row, byte, bit = chance.integers(4), chance.integers(whole.shape[1]), chance.integers(8)
        broken = whole.copy()
        broken[row, byte] ^= 1 << bit
        assert sums(broken.view(opened.dtype)[:, 0], np.arange(4), opened.seal)[row] != broken[row, :4].view("<u4")[0]


def test_a_record_is_valid_in_its_own_place_alone(tmp_path):
    opened = shelf(tmp_path)
    written(opened, np.arange(IMAGES))
    size, whole = opened.dtype.itemsize, opened.path.read_bytes()
    pieces = [whole[row * size : (row + 1) * size] for row in range(IMAGES)]
    pieces[3], pieces[17] = pieces[17], pieces[3]
    opened.path.write_bytes(b"".join(pieces))
    _, valid, damaged = read(tmp_path, np.arange(IMAGES))
    assert np.flatnonzero(~np.array(valid)).tolist() == damaged == [3, 17]
    opened.path.write_bytes(b"".join(reversed(pieces)))
    assert not any(read(tmp_path, np.arange(IMAGES))[1])
    opened.path.write_bytes(whole[size:])
    assert not any(read(tmp_path, np.arange(IMAGES))[1])
    opened.path.write_bytes(b"\1" + whole)
    assert not any(read(tmp_path, np.arange(IMAGES))[1])


def test_a_file_that_was_cut_short_has_what_is_left(tmp_path):
    opened = shelf(tmp_path)
    written(opened, np.arange(IMAGES))
    size = opened.dtype.itemsize
    with open(opened.path, "r+b") as file:
        file.truncate(20 * size + size // 2)
    _, valid, damaged = read(tmp_path, np.arange(IMAGES))
    assert np.flatnonzero(valid).tolist() == list(range(20))
    assert damaged == []
    opened = shelf(tmp_path)
    written(opened, [30], seed=4)
    _, valid, damaged = read(tmp_path, np.arange(IMAGES))
    assert np.flatnonzero(valid).tolist() == [*range(20), 30]
    assert damaged == [20]  # the half of it that was left


@pytest.mark.parametrize("garbage", [b"x", b"\xff" * 4000, bytes(range(256)) * 10])
def test_what_is_appended_to_the_file_is_no_record(tmp_path, garbage):
    opened = shelf(tmp_path)
    records = written(opened, np.arange(IMAGES))
    with open(opened.path, "ab") as file:
        file.write(garbage)
    found, valid, _ = read(tmp_path, np.arange(4 * IMAGES))
    assert np.flatnonzero(valid).tolist() == list(range(IMAGES))
    assert same(found[:IMAGES], records)


def test_records_of_another_shelf_are_not_read(tmp_path):
    for name, options in (
        ("model", {"made_from": {"model": "b", "size": [1, 2]}}),
        ("need", {"name": "features:x"}),
        ("images", {"images": IMAGES + 1}),
    ):
        opened = shelf(tmp_path / name)
        other = shelf(tmp_path / name / "other", **options)
        written(other, np.arange(IMAGES))
        shutil.copy(other.path, opened.path)
        _, valid, damaged = read(tmp_path / name, np.arange(IMAGES))
        assert not any(valid), name
        assert damaged == list(range(IMAGES))


def test_a_lost_description_does_not_make_records_those_of_somebody_else(tmp_path):
    opened = shelf(tmp_path)
    records = written(opened, np.arange(5))
    opened.about.unlink()
    assert not any(read(tmp_path, np.arange(5), made_from={"model": "b", "size": [1, 2]})[1])
    opened.about.unlink()
    found, valid, _ = read(tmp_path, np.arange(5))  # but they still are those of the one who wrote them
    assert all(valid) and same(found, records)


@pytest.mark.parametrize("text", ["", "{", '{"need": "logits", "made fr', "\0\0", "null garbage"])
def test_a_description_that_was_cut_short_is_an_error_that_names_it(tmp_path, text):
    opened = shelf(tmp_path)
    written(opened, np.arange(5))
    opened.about.write_text(text)
    with pytest.raises(UserError, match=r"logits\.json is not whole JSON .*: delete it"):
        shelf(tmp_path)


@pytest.mark.parametrize("there", [{}, {"need": "logits"}, {"made from": 3}])
def test_a_description_that_says_something_else_is_an_error(tmp_path, there):
    opened = shelf(tmp_path)
    write_json(opened.about, there)
    with pytest.raises(Different):
        shelf(tmp_path)


def test_all_that_differs_is_said_with_both_sides():
    there = {"need": "logits", "made from": {"model": {"weights": "aa", "size": [1, 2]}, "set": "s"}, "bytes": 3}
    asked = {"need": "logits", "made from": {"model": {"weights": "bb", "size": [1, 2]}, "seed": 4}, "bytes": 3}
    check_same(there, json.loads(json.dumps(there)), Path("here"))
    with pytest.raises(Different) as error:
        check_same(there, asked, Path("here"))
    assert str(error.value).splitlines() == [
        "the answers logits in here were recorded from different inputs:",
        "  model, weights: recorded aa, this run bb",
        "  seed: recorded None, this run 4",
        "  set: recorded s, this run None",
    ]


def test_a_shelf_says_what_it_was_made_from(tmp_path):
    opened = shelf(tmp_path)
    about = read_json(opened.about)
    assert about["made from"] == {"format": module.FORMAT, "model": "a", "size": [1, 2]}
    assert about["bytes"] == opened.dtype.itemsize == 4 + 4 + 12
    read_again = np.dtype([(name, kind, tuple(shape)) for name, kind, shape in about["record"]])
    assert read_again == opened.dtype


# the disk


def free(monkeypatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, count))


def test_a_disk_without_room_is_refused_before_it_is_full(tmp_path, monkeypatch):
    opened = shelf(tmp_path)
    records = written(opened, np.arange(5))
    free(monkeypatch, SPARE + 5 * opened.dtype.itemsize - 1)
    with pytest.raises(UserError, match=r"the disk is full: 100 bytes of answers .* but 16\.8 MB are free") as error:
        written(opened, np.arange(5, 10))
    assert error.value.__cause__.errno == errno.ENOSPC
    found, valid, _ = read(tmp_path, np.arange(10))
    assert np.flatnonzero(valid).tolist() == list(range(5)) and same(found[:5], records)
    free(monkeypatch, SPARE + 5 * opened.dtype.itemsize)
    written(opened, np.arange(5, 10))
    assert all(read(tmp_path, np.arange(10))[1])


@pytest.mark.parametrize("after", [0, 1, 30, 55])
def test_a_disk_that_fills_while_writing_leaves_what_was_there(tmp_path, monkeypatch, after):
    opened = shelf(tmp_path)
    records = written(opened, np.arange(0, 10))
    room, pwrite = [after], os.pwrite

    def filling(file, data, offset):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = pwrite(file, data[: room[0]], offset)
        room[0] -= count
        return count

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "pwrite", filling)
        with pytest.raises(UserError, match=r"the disk is full: .*logits\.bin could not be written"):
            written(opened, np.arange(10, 20))
    found, valid, damaged = read(tmp_path, np.arange(20))
    whole = after // opened.dtype.itemsize
    assert np.flatnonzero(valid).tolist() == list(range(10 + whole))
    assert same(found[:10], records)
    assert damaged == []  # half a record at the end of the file is not there yet
    written(opened, np.arange(10, 20))
    assert all(read(tmp_path, np.arange(20))[1])


def test_writes_that_are_done_in_pieces_are_whole(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(module.os, "pwrite", lambda file, data, offset: pwrite(file, data[:7], offset))
    records = written(shelf(tmp_path), [4, 5, 6, 30])
    found, valid, _ = read(tmp_path, [4, 5, 6, 30])
    assert all(valid) and same(found, records)


def test_a_folder_that_may_not_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="may not be written"):
        shelf(tmp_path / "file" / "answers")


# many at once


def test_many_writers_of_one_file_leave_it_whole(tmp_path):
    expected = content(shelf(tmp_path), np.arange(4 * IMAGES))

    def write(seed: int) -> None:
        mine = shelf(tmp_path)
        for rows in np.array_split(np.random.default_rng(seed).permutation(4 * IMAGES), 20):
            written(mine, rows)
            mine.read(rows)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    found, valid, damaged = read(tmp_path, np.arange(4 * IMAGES))
    assert all(valid) and damaged == [] and same(found, expected)


def test_many_who_begin_a_shelf_at_once_agree_on_it(tmp_path):
    for trial in range(5):
        folder = tmp_path / str(trial)
        children = [fork(lambda row=row, folder=folder: written(shelf(folder), [row])) for row in range(6)]
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 6
        found, valid, damaged = read(folder, np.arange(6))
        assert all(valid) and damaged == [] and same(found, content(shelf(folder), np.arange(6)))


def fork(work) -> int:
    """A process of its own that does something and ends with 0, or with 1 where it fails."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)
