"""What each named protocol is: layout, expected counts, what counts as right, and where those figures come from."""

from dataclasses import dataclass
from typing import Literal

from ..messages import did_you_mean
from .layouts.base import Layout, TwoFolders, UtmFolders
from .layouts.frames import FrameFolders
from .layouts.gsv import GsvCities
from .layouts.listed import DbStruct, ImageLists
from .layouts.msls import MslsTree
from .layouts.places import PlaceFolders
from .rules import Frames, Hidden, Listed, OthersOfPlace, Own, Rule, SamePlace, Within


@dataclass(frozen=True)
class Count:
    """An expected number.

    Attributes:
        number: how many.
        verified: whether it was counted in the set's own data or code; others are commonly cited.
        source: where it was counted, or who says so.
        at_least: whether only a lower bound is known.
    """

    number: int
    verified: bool
    source: str
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'more than ' if self.at_least else ''}{self.number:,}"

    @property
    def mark(self) -> str:
        """What stands behind a number that nobody has verified."""
        return "" if self.verified else " (cited)"

    def fits(self, found: int) -> bool:
        """Whether a found number is this one, or above a lower bound."""
        return found > self.number if self.at_least else found == self.number


@dataclass(frozen=True)
class ProtocolRecord:
    """One protocol.

    Attributes:
        id: its stable name.
        title: for people.
        layouts: in which it may lie on disk; the first that is found is read.
        rule: what makes a database photo a positive.
        database, queries: expected numbers of photos; None where none is known.
        dropped: how many queries the list has beyond those, which have no positive and are left out.
        denominator: whether queries without positives count as misses ("all") or are left out ("with_positives").
        image_size: of the published photos, in words; empty where it isn't known.
        zone: UTM zone of all photos; None where it isn't one, or not known.
        positives: fewest and most positives of a query, where they were counted.
        notes: what people ask about it.
        images: how to get the photos.
    """

    id: str
    title: str
    layouts: tuple[Layout, ...]
    rule: Rule
    database: Count | None = None
    queries: Count | None = None
    dropped: Count | None = None
    denominator: Literal["all", "with_positives"] = "all"
    image_size: str = ""
    zone: int | None = None
    positives: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    images: str = ""


def find_record(name: str) -> ProtocolRecord:
    """The record of a protocol.

    Raises: ValueError naming the nearest and all known ids.
    """
    for record in PROTOCOLS:
        if record.id == name:
            return record
    known = [record.id for record in PROTOCOLS]
    raise ValueError(f"{name!r} is no protocol.{did_you_mean(name, known)} Known are {', '.join(known)}.")


def _counted(number: int, source: str) -> Count:
    return Count(number, True, source)


def _cited(number: int, source: str = "commonly cited, not verified") -> Count:
    return Count(number, False, source)


_NETVLAD = "counted in Patch-NetVLAD's lists"
_GSV = "counted in GSV-Cities' lists"
_VPR_BENCH = "counted in VPR-Bench's data"
_LEAK = (
    "The 24 crops of one panorama follow each other in the list. A model that mixes the images of a batch sees the "
    "same place several times and scores higher in list order than one photo at a time: CricaVPR R@1 94.7 in batches "
    "of 8 in order, 91.6 with batch 1, 91.1 to 91.6 with the database shuffled (thread Lu-Feng/CricaVPR#7)."
)
_PITTS_IMAGES = "On request from Relja Arandjelović; the lists come with NetVLAD."
_SVOX_NOTE = "The published archive names the database folder gallery/; database/ is read too."
_NORDLAND_NOTE = (
    "Three protocols are called Nordland, and their numbers can't be compared: nordland-vg-10frames, "
    "nordland-vprbench-1frame and nordland-3450-2frames."
)
_MSLS_NOTE = (
    "Two protocols are called MSLS val. The 740 queries of the official lists (747 images, of which 7 have no "
    "positive) are the headline of most papers; the folder layout has some 11,000 queries, and the same weights score "
    "4 to 5 points lower there: MixVPR 83.4 instead of 88.2 (thread amaralibey/MixVPR#5), SelaVPR 86.6 instead of 90.8 "
    "(thread Lu-Feng/SelaVPR#1)."
)


def _pitts(size: str, part: str, database: Count, queries: Count, **more: object) -> ProtocolRecord:
    file = f"pitts{size}_{part}"
    lists = (ImageLists("pitts30k", f"{file}.npz", zone=17),) if file == "pitts30k_test" else ()
    return ProtocolRecord(
        f"pitts{size}-{part}",
        f"Pitts{size} {part}",
        (UtmFolders(part), DbStruct(f"{file}.mat", zone=17, query_folder="queries_real"), *lists),
        Within(),
        database,
        queries,
        image_size="640 x 480 (width x height)",
        zone=17,
        images=_PITTS_IMAGES,
        notes=(_LEAK,),
        **more,
    )


def _svox(condition: str, number: int) -> ProtocolRecord:
    folders = (f"queries_{condition}",)
    return ProtocolRecord(
        f"svox-{condition}",
        f"SVOX, queries: {condition}",
        (UtmFolders(queries=folders, database="gallery"), UtmFolders(queries=folders)),
        Within(),
        _cited(17_166),
        _cited(number),
        notes=(_SVOX_NOTE,),
        images="One archive, by the downloader's download_svox.py.",
    )


_SVOX_CONDITIONS = {"night": 823, "overcast": 872, "rain": 937, "snow": 870, "sun": 854}
_SVOX_FOLDERS = tuple(f"queries_{condition}" for condition in _SVOX_CONDITIONS)


def _sf_xl(name: str, number: int, note: str = "") -> ProtocolRecord:
    return ProtocolRecord(
        f"sf-xl-test-{name}",
        f"SF-XL test, queries: {name}",
        (UtmFolders(queries=(f"queries_{name}",)),),
        Within(),
        _cited(2_805_840, "commonly cited, not verified; the set's README says 2.8M"),
        _cited(number),
        image_size="512 x 512 (database, by the set's README)",
        notes=tuple(filter(None, (note, "Load with streaming=True where the Arrow cache shouldn't be written."))),
        images="By a form; about 1 TB.",
    )


def _vpr_bench(name: str, title: str, database: Count | None, queries: Count | None) -> ProtocolRecord:
    return ProtocolRecord(
        name,
        title,
        (FrameFolders(),),
        Listed(),
        database,
        queries,
        notes=("ground_truth_new.npy pairs each query's number with a list; it is read without running its pickle.",),
        images="With VPR-Bench.",
    )


PROTOCOLS: tuple[ProtocolRecord, ...] = (
    _pitts("30k", "test", _counted(10_000, _NETVLAD), _counted(6_816, _NETVLAD), positives=(24, 360)),
    _pitts("30k", "val", _counted(10_000, _GSV), _counted(7_608, _GSV)),
    _pitts("30k", "train", _cited(10_000), _cited(7_416)),
    _pitts("250k", "test", _cited(83_952), _counted(8_280, _GSV)),
    ProtocolRecord(
        "msls-val-740",
        "Mapillary SLS val, official lists",
        (MslsTree("msls_val", ("cph", "sf")),),
        Within(),
        _counted(18_871, f"{_NETVLAD}: cph 12,556, sf 6,315"),
        _counted(740, f"{_NETVLAD}: cph 498, sf 242"),
        dropped=_counted(7, f"{_GSV}: 747 images, of which 740 are kept"),
        denominator="with_positives",
        notes=(
            _MSLS_NOTE,
            "The database of both cities is searched together, as the code of GSV-Cities and SALAD does; the set's own "
            "evaluate.py ranks each city alone.",
            "Without NumPy lists beside the cities, the set's own rule is applied to its tables: frames of the subtask "
            "'all' that are no panoramas, 25 m in the metres of postprocessed.csv, city by city.",
        ),
        images="From Mapillary, after logging in.",
    ),
    ProtocolRecord(
        "msls-val-folder-11k",
        "Mapillary SLS val, folder layout",
        (UtmFolders("val"), UtmFolders("test")),
        Within(),
        _cited(18_871, "about as many as in the official lists, not verified"),
        _cited(11_120, "SF 4,525 and CPH 6,595 (thread gmberton/VPR-datasets-downloader#18), not verified"),
        notes=(
            _MSLS_NOTE,
            "format_mapillary.py leaves panoramas out, writes msls/{train,val}/{database,queries} without the level "
            "images/, and makes test a link to val.",
        ),
        images="From Mapillary, after logging in; then the downloader's format_mapillary.py.",
    ),
    ProtocolRecord(
        "msls-test",
        "Mapillary SLS test (challenge)",
        (
            MslsTree(
                "msls_test", ("miami", "athens", "buenosaires", "stockholm", "bengaluru", "kampala"), "test", False
            ),
        ),
        Hidden(),
        _counted(36_565, "counted in SALAD's lists"),
        _counted(1_135, "counted in SALAD's lists"),
        notes=(
            "write_predictions makes the file that the challenge takes: a line a query, its key and the keys of the "
            "answers, best first.",
        ),
        images="From Mapillary, after logging in.",
    ),
    ProtocolRecord(
        "tokyo247",
        "Tokyo 24/7",
        (
            UtmFolders(),
            DbStruct("tokyo247.mat", zone=54, query_folder="247query_subset_v2", database_suffix=".png"),
            ImageLists("tokyo247", "tokyo247.npz", zone=54),
        ),
        Within(),
        _counted(75_984, _NETVLAD),
        _counted(315, _NETVLAD),
        image_size="queries with a short side of 480 (when formatted), portrait and landscape",
        zone=54,
        positives=(48, 240),
        notes=("Queries are portrait and landscape: squash them all, or embed them one at a time.",),
        images="On request from the authors; queries by the downloader's format_tokyo247.py.",
    ),
    ProtocolRecord(
        "nordland-vg-10frames",
        "Nordland, summer database, winter queries, ±10 frames",
        (UtmFolders(), ImageLists("nordland", "nordland.npz", zone=0)),
        Frames(10),
        _counted(27_592, _NETVLAD),
        _counted(27_592, _NETVLAD),
        notes=(
            _NORDLAND_NOTE,
            "What D²-VPR and CricaVPR report. The names hold mock positions, 25 m / 10.5 = 2.381 m a frame, so that "
            "25 m are 10 frames and not 11.",
            "Patch-NetVLAD's nordland.npz gives each frame its number as easting and as northing, with a radius of 10: "
            "taken as plane distances that is ±7 frames. Their lists are read here with the rule of the frames.",
        ),
        images="By the downloader's download_nordland.py.",
    ),
    ProtocolRecord(
        "nordland-vprbench-1frame",
        "Nordland, VPR-Bench's layout, ±1 frame",
        (FrameFolders(query_step=10, truth=("ground_truth_new.npy", "Nordland_gt.npy")),),
        Frames(1),
        _counted(27_592, _GSV),
        _counted(2_760, f"{_GSV}: every tenth frame"),
        positives=(2, 3),
        notes=(
            _NORDLAND_NOTE,
            "What MixVPR, SALAD and BoQ ('Nordland*') report. The database is winter, the queries are summer (thread "
            "gmberton/VPR-datasets-downloader#17).",
            "download_nordland_subset.py has the same counts with summer as the database: that is another protocol.",
        ),
        images="With VPR-Bench.",
    ),
    ProtocolRecord(
        "nordland-3450-2frames",
        "Nordland test part, downsampled, ±2 frames",
        (UtmFolders(), FrameFolders(truth=())),
        Frames(2),
        _cited(3_450),
        _cited(3_450),
        notes=(_NORDLAND_NOTE, "The test part of Facil et al., as SelaVPR reports it (thread Lu-Feng/SelaVPR#6)."),
    ),
    ProtocolRecord(
        "sped",
        "SPED",
        (FrameFolders(truth=("ground_truth_new.npy", "SPED_gt.npy")), UtmFolders()),
        Frames(0),
        _counted(607, _GSV),
        _counted(607, _GSV),
        positives=(1, 1),
        notes=("In UTM names, mock northings are 1,000 m times the number of the pair.",),
        images="SPEDTEST, with VPR-Bench, or by the downloader's download_sped.py.",
    ),
    ProtocolRecord(
        "amstertime",
        "AmsterTime",
        (FrameFolders("new", "old", truth=(), numbered_from_zero=False), UtmFolders()),
        Frames(0),
        _cited(1_231),
        _cited(1_231),
        positives=(1, 1),
        notes=("Photos of today are the database, archive photos the queries; a pair shares its number.",),
        images="By the downloader's download_amstertime.py.",
    ),
    ProtocolRecord(
        "essex3in1",
        "ESSEX3IN1",
        (FrameFolders(truth=("ground_truth_new.npy", "ESSEX_gt.npy")),),
        Frames(0),
        _counted(210, f"{_GSV} and VPR-Bench's"),
        _counted(210, f"{_GSV} and VPR-Bench's"),
        positives=(1, 1),
        images="With VPR-Bench.",
    ),
    ProtocolRecord(
        "st-lucia",
        "St Lucia",
        (UtmFolders(),),
        Within(),
        _cited(1_549),
        _cited(1_464),
        notes=("The first traverse is the database, the last the queries, frames at least 5 m apart.",),
        images="By the downloader's download_st_lucia.py.",
    ),
    ProtocolRecord(
        "eynsham",
        "Eynsham",
        (UtmFolders(),),
        Within(),
        _counted(23_935, "read in download_eynsham.py: 4,787 panoramas of 5 tiles"),
        _cited(23_935),
        notes=("Grey photos, 5 tiles of each panorama; the first loop is the database, the second the queries.",),
        images="By the downloader's download_eynsham.py.",
    ),
    *(_svox(condition, number) for condition, number in _SVOX_CONDITIONS.items()),
    ProtocolRecord(
        "svox-all",
        "SVOX, queries: all five conditions",
        (UtmFolders(queries=_SVOX_FOLDERS, database="gallery"), UtmFolders(queries=_SVOX_FOLDERS)),
        Within(),
        _cited(17_166),
        _cited(sum(_SVOX_CONDITIONS.values()), "sum of the five conditions, not verified"),
        notes=(_SVOX_NOTE,),
        images="One archive, by the downloader's download_svox.py.",
    ),
    _sf_xl("v1", 1_000),
    _sf_xl("v2", 598, "The queries are those of San Francisco Landmark with their poses in 6 degrees of freedom."),
    _sf_xl("night", 466),
    _sf_xl("occlusion", 76),
    ProtocolRecord(
        "san-francisco-landmark",
        "San Francisco Landmark",
        (UtmFolders(),),
        Within(),
        Count(1_000_000, False, "the downloader's description says 1.06M, not verified", at_least=True),
        _counted(598, "read in download_san_francisco.py: the queries with reference poses, of 803"),
        zone=10,
        images="By the downloader's download_san_francisco.py.",
    ),
    ProtocolRecord(
        "baidu-mall",
        "Baidu Mall",
        (UtmFolders(),),
        Within(),
        _cited(689),
        _cited(2_292),
        notes=("Indoors. The rule is that of the UTM layout; AnyLoc's own positions come with its copy.",),
        images="With AnyLoc's datasets.",
    ),
    _vpr_bench("vprbench-crossseason", "CrossSeason", *(_counted(191, _GSV),) * 2),
    _vpr_bench("vprbench-inria-holidays", "Inria Holidays", _counted(512, _GSV), _counted(300, _GSV)),
    _vpr_bench("vprbench-corridor", "Corridor", *(_counted(111, _VPR_BENCH),) * 2),
    _vpr_bench("vprbench-17places", "17 Places", None, _counted(406, _VPR_BENCH)),
    _vpr_bench("vprbench-gardenspoint", "Gardens Point", None, _counted(200, _VPR_BENCH)),
    _vpr_bench("vprbench-synthia", "Synthia", None, _counted(813, _VPR_BENCH)),
    _vpr_bench("vprbench-living-room", "Living Room", None, _counted(32, _VPR_BENCH)),
    _vpr_bench("vprbench", "Any set in VPR-Bench's layout", None, None),
    ProtocolRecord(
        "gsv-cities",
        "GSV-Cities (training)",
        (GsvCities(),),
        SamePlace(),
        _cited(530_000, "about 530k photos of about 62k places in 23 cities; rounded, not verified"),
        notes=(
            "Photos of one place share a place number, places are at least 100 m apart. Places with fewer photos than "
            "a batch takes of each are dropped in training, not here.",
        ),
        images="23.4 GB, by OpenVPRLab's script; a light version has 1.2 GB.",
    ),
    ProtocolRecord(
        "folders",
        "Two folders of one's own",
        (TwoFolders(),),
        Own(),
        notes=("Positions come from names, EXIF or nowhere.",),
    ),
    ProtocolRecord(
        "places",
        "Photos with a place label of one's own",
        (PlaceFolders(),),
        OthersOfPlace(),
        denominator="with_positives",
        notes=(
            "Beside recall@k it has mean average precision: of each query, the mean over its positives of the "
            "precision at the positive's rank in the whole ranking.",
            "A photo that is alone in its place is no query, and stays in the database.",
        ),
    ),
)
