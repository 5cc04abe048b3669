import resource
from pathlib import Path

import numpy as np
import pytest

from d2vpr_hf.retrieval.mapped_pages import release_pages
from d2vpr_hf.retrieval.nearest import nearest_rows
from d2vpr_hf.retrieval.similarity import rows_without_meaning

ROWS, DIM = 8192, 1024  # 32 MB
STATUS = Path("/proc/self/statm")


@pytest.fixture
def mapped(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((ROWS, DIM), np.float32)
    vectors.tofile(tmp_path / "vectors")
    return np.memmap(tmp_path / "vectors", np.float32, "r", shape=vectors.shape)


def mapped_bytes():
    """Pages of files in this process."""
    return int(STATUS.read_text().split()[2]) * resource.getpagesize()


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc, which Linux has")
def test_walking_over_a_mapped_file_leaves_nothing_of_it_in_memory(mapped):
    before = mapped_bytes()
    total = float(mapped.sum())
    assert mapped_bytes() - before > mapped.nbytes / 2  # else the lines below would show nothing
    release_pages(mapped)
    assert mapped_bytes() - before < mapped.nbytes / 8
    assert float(mapped.sum()) == total
    release_pages(mapped)
    nearest_rows(np.array(mapped[:3]), mapped, 5, "l2", block_bytes=2**20)
    assert rows_without_meaning(mapped, "l2").tolist() == []
    assert mapped_bytes() - before < mapped.nbytes / 4


def test_nothing_that_was_written_is_lost(mapped, tmp_path):
    private = np.memmap(tmp_path / "vectors", np.float32, "c", shape=mapped.shape)
    private[5] = 7
    shared = np.memmap(tmp_path / "shared", np.float32, "w+", shape=(4, 4))
    shared[:] = 3
    plain = np.ones(4)
    for array in (private, shared, plain, private[2:]):
        release_pages(array)
    assert (private[5] == 7).all()
    assert (shared == 3).all()
    assert (plain == 1).all()
