"""What is kept of a teacher is its own, whole, and there after any end."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_teachers import WIDTH, tiny_cricavpr

from d2vpr_hf import D2VprImageProcessor
from d2vpr_hf.training.teacher_cache import TeacherCache, relative_error, unit_descriptors
from d2vpr_hf.training.teachers import PlaceTeacher, Teacher


def hashes(*names):
    return [hashlib.sha256(str(name).encode()).hexdigest() for name in names]


@pytest.fixture
def rows():
    return torch.randn(6, 14, WIDTH, generator=torch.Generator().manual_seed(1))


def as_teacher(version="ab" * 32, dtype="float32", mode="batch_independent", **fields):
    network = PlaceTeacher(tiny_cricavpr(**fields))
    return Teacher(network, name="tiny", mode=mode, version_hash=version, dtype=dtype)


@pytest.fixture
def teacher():
    return as_teacher()


def test_rows_come_back_in_any_order_and_after_reopening(tmp_path, teacher, tiny_processor, rows):
    cache = TeacherCache(tmp_path, teacher, tiny_processor)
    names = hashes(*range(6))
    assert cache.lookup(names[:1]) is None
    cache.add(names[:4], rows[:4])
    cache.add(names[4:], rows[4:])
    for opened in (cache, TeacherCache(tmp_path, teacher, tiny_processor)):
        assert len(opened) == 6
        order = [5, 0, 3, 3]
        found = opened.lookup([names[each] for each in order])
        assert (found.dtype, found.shape) == (torch.float32, (4, 14, WIDTH))
        torch.testing.assert_close(found, rows[order], rtol=1e-3, atol=1e-6)
        assert torch.equal(found[2], found[3])
        # All or none: a batch that is half known needs the teacher anyway.
        assert opened.lookup([*names[:2], *hashes("new")]) is None


def test_float16_is_kept_where_it_is_exact_enough(tmp_path, teacher, tiny_processor, rows):
    cache = TeacherCache(tmp_path, teacher, tiny_processor)
    cache.add(hashes(*range(6)), rows)
    found = cache.lookup(hashes(*range(6)))
    error = relative_error(unit_descriptors(found), unit_descriptors(rows))
    assert 0 < error < 1e-3
    # Photos that hardly differ, numbers beyond float16, and one photo, by which nothing can be measured.
    alike = rows[:1] + 1e-4 * rows
    for number, exact in enumerate((alike, 1e6 * rows, rows[:1])):
        names = hashes(*(f"{number} {row}" for row in range(len(exact))))
        cache.add(names, exact)
        assert torch.equal(cache.lookup(names), exact)


def test_each_teacher_has_its_own(tmp_path, teacher, tiny_processor, rows):
    names = hashes(*range(6))
    TeacherCache(tmp_path, teacher, tiny_processor).add(names, rows)
    others = [
        TeacherCache(tmp_path, as_teacher(version="cd" * 32), tiny_processor),
        TeacherCache(tmp_path, as_teacher(dtype="bfloat16"), tiny_processor),
        TeacherCache(tmp_path, teacher, D2VprImageProcessor(size={"height": 70, "width": 56})),
    ]
    assert len({other.folder for other in others}) == 3
    assert all(other.lookup(names) is None for other in others)
    assert TeacherCache(tmp_path, as_teacher(), tiny_processor).lookup(names) is not None


def test_another_teachers_file_in_the_folder_is_refused(tmp_path, teacher, tiny_processor, rows):
    cache = TeacherCache(tmp_path, teacher, tiny_processor)
    cache.add(hashes(*range(6)), rows)
    other = TeacherCache(tmp_path, as_teacher(version="cd" * 32), tiny_processor)
    (part,) = cache.folder.iterdir()
    part.rename(other.folder / part.name)
    with pytest.raises(ValueError, match="holds descriptors of another teacher, processor or precision"):
        TeacherCache(tmp_path, as_teacher(version="cd" * 32), tiny_processor)


def test_processes_see_each_others_rows(tmp_path, teacher, tiny_processor, rows):
    first, second = (TeacherCache(tmp_path, teacher, tiny_processor) for _ in range(2))
    first.add(hashes("a", "b"), rows[:2])
    second.add(hashes("c"), rows[2:3])
    torch.testing.assert_close(second.lookup(hashes("b", "c")), rows[1:3], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("damage", ["cut", "empty", "other tensors"])
def test_a_damaged_file_is_taught_again(tmp_path, teacher, tiny_processor, rows, damage):
    cache = TeacherCache(tmp_path, teacher, tiny_processor)
    cache.add(hashes("a", "b"), rows[:2])
    (part,) = cache.folder.iterdir()
    cache.add(hashes("c"), rows[2:3])
    if damage == "other tensors":
        save_file({"x": load_file(part)["hashes"]}, part)
    else:
        part.write_bytes(part.read_bytes()[: -7 if damage == "cut" else 0])
    again = TeacherCache(tmp_path, teacher, tiny_processor)
    assert again.lookup(hashes("a")) is None
    assert torch.equal(again.lookup(hashes("c")), rows[2:3])
    again.add(hashes("a", "b"), rows[:2])
    assert again.lookup(hashes("a", "b")) is not None
    assert len(list(cache.folder.iterdir())) == 2


def test_an_abandoned_file_is_removed_and_a_young_one_stays(tmp_path, teacher, tiny_processor):
    folder = TeacherCache(tmp_path, teacher, tiny_processor).folder
    old, young = folder / "part-1.safetensors.tmp", folder / "part-2.safetensors.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    TeacherCache(tmp_path, teacher, tiny_processor)
    assert [path.name for path in folder.iterdir()] == [young.name]


def test_what_was_added_is_there_after_kill_9(tmp_path, teacher, tiny_processor):
    code = f"""
import sys
sys.path = {sys.path!r}
import torch
from training.test_teacher_cache import as_teacher, hashes
from d2vpr_hf import D2VprImageProcessor
from d2vpr_hf.training.teacher_cache import TeacherCache

cache = TeacherCache("cache", as_teacher(), D2VprImageProcessor(size={{"height": 56, "width": 56}}))
for number in range(10**6):
    cache.add(hashes(number), torch.full((1, 14, {WIDTH}), float(number)))
    print(number, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        said = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    added = [int(line) for line in said if line.endswith("\n")]
    assert len(added) >= 5
    cache = TeacherCache(tmp_path / "cache", teacher, tiny_processor)
    # One more may be on the disk, whose line was not written any more.
    assert len(cache) in (len(added), len(added) + 1)
    found = cache.lookup(hashes(*added))
    assert torch.equal(found[:, 0, 0], torch.tensor(added, dtype=torch.float32))


@pytest.mark.parametrize("mode", ["as_published", "place_grouped"])
def test_modes_that_depend_on_the_batch_are_refused(tmp_path, tiny_processor, mode):
    with pytest.raises(ValueError, match=f"runs in mode '{mode}', in which an image's descriptor depends on the batch"):
        TeacherCache(tmp_path, as_teacher(mode=mode), tiny_processor)


def test_what_does_not_fit_is_refused(tmp_path, teacher, tiny_processor, rows):
    cache = TeacherCache(tmp_path, teacher, tiny_processor)
    with pytest.raises(ValueError, match=r"has shape \(6, 14, 48\), but \(2, 14, 48\) was expected"):
        cache.add(hashes("a", "b"), rows)
    with pytest.raises(ValueError, match="isn't a SHA-256 in hex"):
        cache.lookup(["abcd"])
    assert len(cache) == 0


def test_relative_error_by_hand():
    exact = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # Distances are sqrt(2), 2 and sqrt(2); one of three descriptors is 0.3 off.
    found = exact + torch.tensor([[0.3, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert relative_error(found, exact) == pytest.approx(0.1 / ((2 * 2**0.5 + 2) / 3))
    assert relative_error(found * float("nan"), exact) == float("inf")
    assert relative_error(found[:1], exact[:1]) == float("inf")
    assert relative_error(exact, exact[:1].expand(3, -1)) == float("inf")
