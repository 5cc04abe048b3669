"""Time and memory that scoring a large benchmark takes, from descriptors on disk to recall@k.

    python benchmarks/score_large.py
    python benchmarks/score_large.py --dim 10752 --ways mapped
    python benchmarks/score_large.py --database 2805840 --queries 1000 --ways mapped --work /a/large/disk

The benchmark is made: random descriptors of length 1, the database on a grid of 10 m, each query a few metres from one
of its photos and as much like it as chance allows others to be, so that about half of them are found. Each way of
ranking runs in a process of its own. Reading from the disk counts only where the system has not kept the files in
memory since they were written.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import resource
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import evaluate
import faiss
import numpy as np
import torch

from d2vpr_hf import Descriptors, PlaceIndex
from d2vpr_hf.evaluation.recall import recall_at_k
from d2vpr_hf.photos.positions import Positions, positives_within
from d2vpr_hf.retrieval.similarity import nearest_rows

METRIC = Path(__file__).parents[1] / "metrics" / "recall_at_k"
SF_XL_DATABASE, SF_XL_QUERIES = 2_805_840, 1_000
SPACING_M, RADIUS_M, METRES_A_DEGREE = 10.0, 25.0, 111_000.0
_BLOCK_ROWS = 4096


def write_descriptors(folder: Path, database: int, queries: int, dim: int, seed: int) -> None:
    """`database.f32`, `queries.f32` (rows, dim) and `rows.npy` (queries,), the database photo that each query shows."""
    rows = np.random.default_rng(seed).choice(database, queries, replace=queries > database)
    np.save(folder / "rows.npy", rows)
    asked = np.argsort(rows)
    query_vectors = np.memmap(folder / "queries.f32", np.float32, "w+", shape=(queries, dim))
    # About the best score that a query has with a photo it has nothing to do with.
    chance = math.sqrt(2 * math.log(database) / dim)
    with (folder / "database.f32").open("wb") as file:
        for start in range(0, database, _BLOCK_ROWS):
            random = np.random.default_rng([seed, start])
            block = _unit(random.standard_normal((min(_BLOCK_ROWS, database - start), dim), np.float32))
            block.tofile(file)
            here = asked[slice(*np.searchsorted(rows[asked], [start, start + len(block)]))]
            likeness = np.minimum(2 * chance * random.random((len(here), 1), np.float32), 1)
            noise = _unit(random.standard_normal((len(here), dim), np.float32))
            query_vectors[here] = _unit(likeness * block[rows[here] - start] + np.sqrt(1 - likeness**2) * noise)
    query_vectors.flush()


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def positions_of(rows: np.ndarray, database: int, shift_m: float) -> Positions:
    """Where the database photos of these rows stand on their grid, moved north by so many metres."""
    north, east = np.divmod(rows, math.isqrt(database))
    latitude = 40 + (SPACING_M * north + shift_m) / METRES_A_DEGREE
    longitude = -80 + SPACING_M * east / (METRES_A_DEGREE * math.cos(math.radians(40)))
    return Positions.from_degrees(latitude, longitude)


class OwnMemory(threading.Thread):
    """Watches the most memory of its own that this process holds, without the pages of files that it maps."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self._ended = threading.Event()

    def run(self) -> None:
        page = resource.getpagesize()
        while not self._ended.wait(0.02):
            resident, shared = (int(field) for field in Path("/proc/self/statm").read_text().split()[1:3])
            self.peak_bytes = max(self.peak_bytes, page * (resident - shared))

    def end(self) -> int:
        self._ended.set()
        self.join()
        return self.peak_bytes


def measure(way: str, folder: Path, options: argparse.Namespace) -> dict:
    """Scores the benchmark in one way: seconds a step, peak memory, and what came out."""
    faiss.omp_set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    seconds, started = {}, time.perf_counter()

    def lap(step: str) -> None:
        nonlocal started
        seconds[step] = time.perf_counter() - started
        started = time.perf_counter()

    database_at = positions_of(np.arange(options.database), options.database, 0)
    queries_at = positions_of(np.load(folder / "rows.npy"), options.database, 4)
    database, queries = (
        np.memmap(folder / f"{split}.f32", np.float32, "r").reshape(-1, options.dim)
        for split in ("database", "queries")
    )
    own = OwnMemory()
    own.start()
    before_bytes = _peak_bytes()
    started = time.perf_counter()
    positives = positives_within(database_at, queries_at, RADIUS_M)
    lap("positives")
    if way == "index":
        paths = [f"{row}.jpg" for row in range(len(database))]
        index = PlaceIndex.build(Descriptors(database, paths, [], "made", "0"), database_at)
        lap("build the index")
        ranking = index.search(Descriptors(queries, paths[: len(queries)], [], "made", "0"), max(options.k)).ids
    else:
        _, ranking = nearest_rows(queries, database, max(options.k), "inner_product")
    lap("rank")
    recall = recall_at_k(ranking, positives, options.k)
    lap("recall_at_k")
    metric = evaluate.load(str(METRIC), cache_dir=str(folder / way))
    started = time.perf_counter()
    again = metric.compute(predictions=ranking, references=positives, k=options.k, database_size=options.database)
    lap("the same by evaluate")
    own_bytes, peak_bytes = own.end(), _peak_bytes()
    if any(again[f"recall@{k}"] != share for k, share in recall.items()):
        raise RuntimeError(f"recall_at_k gives {recall}, but the metric of evaluate {again}.")
    np.save(folder / f"{way}.npy", ranking)
    return {
        "seconds": seconds,
        "before_bytes": before_bytes,
        "peak_bytes": peak_bytes,
        "own_bytes": own_bytes,
        "recall": {f"recall@{k}": share for k, share in recall.items()},
        "positives_a_query": float(np.mean([len(each) for each in positives])),
    }


def _peak_bytes() -> int:
    """The most that was in memory at a time, pages of mapped files among it."""
    # macOS counts bytes, Linux kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def in_its_own_process(work, *arguments):
    # Spawned, because a forked process begins with the memory of this one.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def sf_xl(way: str, result: dict, options: argparse.Namespace) -> dict:
    """What SF-XL's test would take with its 1,000 queries, if each step grows as the work in it does."""
    more = SF_XL_DATABASE / options.database
    pairs = more * SF_XL_QUERIES / options.queries
    seconds = pairs * result["seconds"]["rank"] + more * result["seconds"].get("build the index", 0)
    vectors = 4 * options.dim * SF_XL_DATABASE
    return {
        "seconds": seconds,
        "disk_bytes": vectors,
        "memory_bytes": vectors if way == "index" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=int, default=100_000, help="database photos (default: 100000)")
    parser.add_argument("--queries", type=int, default=10_000, help="queries (default: 10000)")
    parser.add_argument("--dim", type=int, default=512, help="numbers in a descriptor (default: 512)")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 5, 10, 100], help="cut-offs (default: 1 5 10 100)")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=["index", "mapped"],
        default=["index", "mapped"],
        help="rank by an index in memory, or by blocks of the mapped file (default: both)",
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--threads", type=int, default=cores, help="that rank (default: one a core)")
    parser.add_argument("--seed", type=int, default=0, help="of the made descriptors (default: 0)")
    parser.add_argument("--work", help="folder for the made files (default: the system's temporary folder)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        folder = Path(work)
        size = (options.database, options.queries, options.dim, options.seed)
        in_its_own_process(write_descriptors, folder, *size)
        results = {way: in_its_own_process(measure, way, folder, options) for way in options.ways}
        rankings = [np.load(folder / f"{way}.npy") for way in options.ways]
    agreement = float((rankings[0] == rankings[-1]).mean())
    estimates = {way: sf_xl(way, result, options) for way, result in results.items()}
    if options.json:
        print(json.dumps({"options": vars(options), "ways": results, "agreement": agreement, "sf_xl": estimates}))
        return
    print_results(options, results, agreement, estimates)


def print_results(options: argparse.Namespace, results: dict, agreement: float, estimates: dict) -> None:
    print(
        f"{options.database:,} database photos, {options.queries:,} queries, {options.dim:,} numbers a descriptor: "
        f"{4 * options.dim * options.database / 1e9:.2f} GB on disk; {options.threads} threads"
    )
    for way, result in results.items():
        print(f"\n{way}")
        for step, seconds in result["seconds"].items():
            print(f"  {step:<34}{seconds:>10.2f} s")
        print(f"  {'peak memory':<34}{result['peak_bytes'] / 1e9:>10.2f} GB")
        print(f"  {'  of its own, no mapped files':<34}{result['own_bytes'] / 1e9:>10.2f} GB")
        print(f"  {'  before scoring (imports)':<34}{result['before_bytes'] / 1e9:>10.2f} GB")
        print("  " + ", ".join(f"{name} {share:.4f}" for name, share in result["recall"].items()))
        estimate = estimates[way]
        memory = (
            "the memory above" if estimate["memory_bytes"] is None else f"{estimate['memory_bytes'] / 1e9:.0f} GB more"
        )
        print(
            f"  estimate for SF-XL, {SF_XL_DATABASE:,} photos and {SF_XL_QUERIES:,} queries: ranking "
            f"{estimate['seconds']:.0f} s, {memory}, and reading {estimate['disk_bytes'] / 1e9:.0f} GB from disk"
        )
    if len(results) > 1:
        print(f"\nBoth ways give the same answer in {100 * agreement:.4f} % of all ranks.")


if __name__ == "__main__":
    main()
