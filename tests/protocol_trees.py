"""Small trees of real image files, each in exactly the layout of its protocol, with positives worked out by hand."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from pyproj import Proj
from scipy.io import savemat

from d2vpr_hf.protocols.records import PROTOCOLS

EAST_M, NORTH_M = 500_000.0, 4_000_000.0
# Metres east of each other: the first query is 25, 5 and 35 m from the database photos, the last query 65, 45 and 5.
DATABASE_M, QUERIES_M = (0.0, 20.0, 60.0), (25.0, 65.0)
# So the first has the first two (25 m counts), the second only the last.
NEAR = [[0, 1], [2]]


def _encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 8), (90, 120, 150)).save(file, kind)
    return file.getvalue()


_FILES = {".jpg": _encoded("JPEG"), ".png": _encoded("PNG")}


def write_photo(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_FILES[path.suffix.lower()])
    return path


def utm_name(east_m: float, north_m: float = 0.0, zone: int = 10, note: str = "") -> str:
    east_m, north_m = EAST_M + east_m, NORTH_M + north_m
    longitude, latitude = Proj(proj="utm", zone=zone, ellps="WGS84")(east_m, north_m, inverse=True)
    metres = f"@{east_m:010.2f}@{north_m:010.2f}@{zone:02d}@S"
    return f"{metres}@{latitude:09.5f}@{longitude:010.5f}@pano@00@090@000@@@20240131_1230@{note}@.jpg"


def mock_name(frame: int, spacing_m: float) -> str:
    # Tenths are cut off, not rounded, as the published names have them.
    return f"@0@{int(frame * spacing_m * 10) / 10:07.1f}@@@@@{frame}@@@@@@@@.jpg"


def utm(database: str = "images/test/database", *queries: str, zone: int = 10) -> Callable[[Path], list[list[int]]]:
    queries = queries or ("images/test/queries",)

    def build(root: Path) -> list[list[int]]:
        for east_m in DATABASE_M:
            write_photo(root / database / utm_name(east_m, zone=zone))
        for folder in queries:
            for east_m in QUERIES_M:
                write_photo(root / folder / utm_name(east_m, zone=zone, note=Path(folder).name))
        return NEAR * len(queries)

    return build


def nordland_vg(root: Path) -> list[list[int]]:
    for side in ("database", "queries"):
        for frame in range(23):
            write_photo(root / "images/test" / side / mock_name(frame, 25 / 10.5))
    # 10 frames to either side: 0 sees 0 to 10, 11 sees 1 to 21, 22 sees 12 to 22.
    return [list(range(max(0, frame - 10), min(22, frame + 10) + 1)) for frame in range(23)]


def numbered(database: int, queries: int, folders: tuple[str, str] = ("ref", "query")) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        for folder, count in zip(folders, (database, queries), strict=True):
            for number in range(count):
                write_photo(root / folder / f"{number:07d}.jpg")

    return build


def nordland_vprbench(root: Path) -> list[list[int]]:
    numbered(31, 4)(root)
    # Query 1 is frame 10, query 3 is frame 30, the last.
    return [[0, 1], [9, 10, 11], [19, 20, 21], [29, 30]]


def nordland_3450(root: Path) -> list[list[int]]:
    numbered(5, 5)(root)
    return [[0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3, 4], [2, 3, 4]]


def pairs(root: Path) -> list[list[int]]:
    numbered(3, 3)(root)
    return [[0], [1], [2]]


def amstertime(root: Path) -> list[list[int]]:
    # By number 7, 30, 200; by name it would be 200, 30, 7.
    for number in (7, 30, 200):
        write_photo(root / "new" / f"{number}.png")
        write_photo(root / "old" / f"{number}.jpg")
    return [[0], [1], [2]]


def save_pairs(path: Path, positives: list[list[int]]) -> None:
    """VPR-Bench's object array of (query number, [rows])."""
    table = np.empty((len(positives), 2), object)
    for query, rows in enumerate(positives):
        table[query] = [query, rows]
    np.save(path, table, allow_pickle=True)


def vprbench(root: Path) -> list[list[int]]:
    numbered(4, 3)(root)
    positives = [[0, 1], [1, 2, 3], [3]]
    save_pairs(root / "ground_truth_new.npy", positives)
    return positives


def dbstruct(file: str, query_folder: str, suffix: str = ".jpg") -> Callable[[Path], list[list[int]]]:
    def build(root: Path) -> list[list[int]]:
        database = [f"000/{number:06d}_pitch1_yaw1{suffix}" for number in range(3)]
        queries = [f"000/{number:06d}_pitch1_yaw1.jpg" for number in (7, 8)]
        for name in database:
            write_photo(root / name)
        for name in queries:
            write_photo(root / query_folder / name)
        metres = [np.array([[EAST_M + east for east in row], [NORTH_M] * len(row)]) for row in (DATABASE_M, QUERIES_M)]
        listed = [np.array([[name.replace(".png", ".jpg")] for name in names], object) for names in (database, queries)]
        struct = {"whichSet": "test", "dbImageFns": listed[0], "utmDb": metres[0], "qImageFns": listed[1]}
        (root / "datasets").mkdir()
        savemat(root / "datasets" / file, {"dbStruct": struct | {"utmQ": metres[1], "numImages": 3}})
        return NEAR

    return build


def image_lists(prefix: str, metres_file: str) -> Callable[[Path], list[list[int]]]:
    def build(root: Path) -> list[list[int]]:
        for kind, names in (("index", ["a/0.jpg", "a/1.jpg", "a/2.jpg"]), ("query", ["b/0.jpg", "b/1.jpg"])):
            for name in names:
                write_photo(root / name)
            (root / f"{prefix}_imageNames_{kind}.txt").write_text("".join(f"./{name}\n" for name in names))
        metres = [np.array([[EAST_M + east, NORTH_M] for east in row]) for row in (DATABASE_M, QUERIES_M)]
        np.savez(root / metres_file, utmDb=metres[0], utmQ=metres[1], posDistThr=25)
        return NEAR

    return build


MSLS_DEGREES = {"cph": (12.5, 55.6), "sf": (-122.4, 37.8)}


def write_msls_side(folder: Path, rows: list[tuple[str, float, bool, bool]], degrees: tuple | None) -> None:
    """One side of a city from (key, metres east, of the task, panorama); without degrees nothing says where it is."""
    tables = {
        "seq_info": [(key, f"seq{number // 2}", number % 2) for number, (key, *_) in enumerate(rows)],
        "subtask_index": [(task,) for _, _, task, _ in rows],
    }
    heads = {"seq_info": "key,sequence_key,frame_number", "subtask_index": "all"}
    if degrees is not None:
        tables["raw"] = [(key, *degrees, 87.5, "2014-09-10", pano) for key, _, _, pano in rows]
        heads["raw"] = "key,lon,lat,ca,captured_at,pano"
        tables["postprocessed"] = [(key, 350_000 + east, 6e6, 0, False, "Forward") for key, east, _, _ in rows]
        heads["postprocessed"] = "key,easting,northing,unique_cluster,night,view_direction"
    for name, lines in tables.items():
        folder.mkdir(parents=True, exist_ok=True)
        body = [",".join(map(str, (number, *line))) for number, line in enumerate(lines)]
        (folder / f"{name}.csv").write_text("\n".join([f",{heads[name]}", *body]) + "\n")
    for key, *_ in rows:
        write_photo(folder / "images" / f"{key}.jpg")


def msls_val(root: Path) -> list[list[int]]:
    for city, degrees in MSLS_DEGREES.items():
        tree, start = root / "train_val" / city, city[0]
        # In the database: d0 at 0 m, d1 isn't of the task, d2 is a panorama, d3 at 20 m, d4 at 60 m.
        database = [("d0", 0, True, False), ("d1", 5, False, False), ("d2", 10, True, True)]
        database += [("d3", 20, True, False), ("d4", 60, True, False)]
        # q1 has nothing within 25 m and is left out; q2 isn't of the task.
        queries = [("q0", 25, True, False), ("q1", 200, True, False), ("q2", 0, False, False), ("q3", 65, True, False)]
        write_msls_side(tree / "database", [(start + key, *rest) for key, *rest in database], degrees)
        write_msls_side(tree / "query", [(start + key, *rest) for key, *rest in queries], degrees)
    # d0, d3, d4 of cph are rows 0 to 2, those of sf 3 to 5: the same metres, but in another zone.
    return [[0, 1], [2], [3, 4], [5]]


def msls_test(root: Path) -> None:
    for city in ("miami", "athens", "buenosaires", "stockholm", "bengaluru", "kampala"):
        rows = [(f"{city}0", 0, True, False), (f"{city}1", 0, False, False)]
        write_msls_side(root / "test" / city / "database", rows, None)
        write_msls_side(root / "test" / city / "query", [(f"{city}q", 0, True, False)], None)


def own_folders(root: Path) -> list[list[int]]:
    return utm("database", "queries")(root)


def place_folders(root: Path) -> list[list[int]]:
    for name in ("a/0.jpg", "a/deep/1.jpg", "b/2.jpg", "c/3.jpg", "c/4.jpg", "c/5.jpg", "distractors/6.jpg"):
        write_photo(root / name)
    # Row 2 is alone in its place, so that it's no query; row 6 shows none of the places.
    return [[1], [0], [4, 5], [3, 5], [3, 4]]


def place_table(root: Path) -> list[list[int]]:
    rows = ["b.jpg,7", "a.jpg,7", "x/c.jpg,9"]
    for row in rows:
        write_photo(root / row.split(",")[0])
    (root / "metadata.csv").write_text("\n".join(["file_name,place", *rows]) + "\n")
    return [[1], [0]]


_SVOX = [f"images/test/queries_{name}" for name in ("night", "overcast", "rain", "snow", "sun")]

# {protocol: [builder, ...]}: each builds the tree and gives the positives that it must have.
TREES: dict[str, list[Callable[[Path], list[list[int]] | None]]] = {
    "pitts30k-test": [
        utm(zone=17),
        dbstruct("pitts30k_test.mat", "queries_real"),
        image_lists("pitts30k", "pitts30k_test.npz"),
    ],
    "pitts30k-val": [
        utm("images/val/database", "images/val/queries", zone=17),
        dbstruct("pitts30k_val.mat", "queries_real"),
    ],
    "pitts30k-train": [utm("train/database", "train/queries", zone=17)],
    "pitts250k-test": [utm(zone=17), dbstruct("pitts250k_test.mat", "queries_real")],
    "msls-val-740": [msls_val],
    "msls-val-folder-11k": [utm("val/database", "val/queries")],
    "msls-test": [msls_test],
    "tokyo247": [
        utm(zone=54),
        dbstruct("tokyo247.mat", "247query_subset_v2", ".png"),
        image_lists("tokyo247", "tokyo247.npz"),
    ],
    "nordland-vg-10frames": [nordland_vg],
    "nordland-vprbench-1frame": [nordland_vprbench],
    "nordland-3450-2frames": [nordland_3450],
    "sped": [pairs],
    "amstertime": [amstertime],
    "essex3in1": [pairs],
    "st-lucia": [utm()],
    "eynsham": [utm()],
    **{
        f"svox-{Path(folder).name[8:]}": [utm("images/test/gallery", folder), utm("images/test/database", folder)]
        for folder in _SVOX
    },
    "svox-all": [utm("images/test/gallery", *_SVOX)],
    **{
        f"sf-xl-test-{name}": [utm("processed/test/database", f"processed/test/queries_{name}")]
        for name in ("v1", "v2", "night", "occlusion")
    },
    "san-francisco-landmark": [utm(zone=10)],
    "baidu-mall": [utm()],
    **{record.id: [vprbench] for record in PROTOCOLS if record.id.startswith("vprbench")},
    "folders": [own_folders],
    "places": [place_folders, place_table],
}
