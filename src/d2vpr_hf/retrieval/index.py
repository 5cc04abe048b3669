"""The index of places: which photo lies where, and which of them look most like a query."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from ..files import holding, text_to_path
from ..messages import first_few
from ..photos.positions import Positions, distances_m
from .descriptors import STATE_COLUMNS, Descriptors, file_states
from .index_folder import PLACES_SCHEMA, read_index_folder, write_index_folder
from .provenance import difference
from .similarity import Metric, metric_of, rows_without_meaning
from .stores import DEFAULT_STORES, store_class
from .stores.base import VectorStore
from .threshold import Threshold, choose_threshold

_EARTH_RADIUS_M = 6_371_009.0


@dataclass(frozen=True)
class Matches:
    """The best matches of each query, best first; places that run out leave the rest of a row empty.

    Attributes:
        ids: (queries, k) int64, -1 where there are no more places.
        scores: (queries, k) float32 inner products, or minus the distances where the index's metric is "l2"; nan there.
        paths: (queries, k) of str, empty there.
        latitude: (queries, k) float64 degrees (WGS84), nan there and where a place has none.
        longitude: (queries, k) float64 degrees (WGS84), the same.
    """

    ids: np.ndarray
    scores: np.ndarray
    paths: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def distances_m(self) -> np.ndarray:
        """(queries, k, k) metres between the matches of a query; nan where one of the two has no coordinates."""
        latitude, longitude = self.latitude, self.longitude
        return distances_m(latitude[:, :, None], longitude[:, :, None], latitude[:, None], longitude[:, None])


class PlaceIndex:
    """Places with their descriptors, searched exactly: by inner product where these have length 1, else by distance.

    Made by `build` or `load`. `places` is a table with one row a place, in the order of its ids: id, path, latitude,
    longitude (degrees), easting, northing (metres), zone, south, and size_bytes, mtime_ns, ctime_ns and inode of the
    file when it was read (-1 where the path isn't a file). It is for reading: `add` and `remove` change the index.
    """

    def __init__(
        self,
        places: pd.DataFrame,
        store: VectorStore,
        *,
        model_name: str,
        weight_hash: str,
        processor: dict[str, Any] | None = None,
        dtype: str | None = None,
        next_id: int = 0,
        threshold: Threshold | None = None,
    ) -> None:
        self.places = places
        self.model_name = model_name
        self.weight_hash = weight_hash
        self.processor = processor
        self.dtype = dtype
        self._store = store
        self._next_id = next_id
        self._threshold = threshold

    def __len__(self) -> int:
        return len(self.places)

    @property
    def dim(self) -> int:
        """Numbers in a descriptor."""
        return self._store.dim

    @property
    def metric(self) -> Metric:
        """How descriptors are compared: "inner_product", or "l2" where they aren't of length 1."""
        return self._store.metric

    @property
    def positions(self) -> Positions:
        """Where the places are, in the order of `places`."""
        columns = ("latitude", "longitude", "easting", "northing", "zone", "south")
        return Positions(**{name: self.places[name].to_numpy() for name in columns})

    @property
    def threshold(self) -> Threshold:
        """Score below which a photo counts as outside the map; chosen anew after `add` and `remove`."""
        if self._threshold is None:
            self._threshold = choose_threshold(self._store, self.positions)
        return self._threshold

    @classmethod
    def build(cls, descriptors: Descriptors, positions: Positions | None = None) -> Self:
        """An index of all descriptors; where most of them aren't of length 1 its metric is "l2".

        Args:
            descriptors: of the database photos, as `embed_images` gives them.
            positions: where they were taken, one a descriptor; without them no place has coordinates.

        Raises: ValueError if there is no descriptor, or as `add`.
        """
        vectors = descriptors.vectors
        if vectors.ndim != 2 or not all(vectors.shape):
            raise ValueError(
                f"The descriptors have shape {vectors.shape}, and {len(descriptors.skipped)} photos were skipped; an "
                "index needs (rows, dim) with at least one row. Look into `descriptors.skipped`."
            )
        places = PLACES_SCHEMA.empty_table().to_pandas()
        metric = metric_of(vectors)
        store = store_class(DEFAULT_STORES[metric])(vectors.shape[1], metric)
        index = cls(
            places,
            store,
            model_name=descriptors.model_name,
            weight_hash=descriptors.weight_hash,
            processor=descriptors.processor,
            dtype=descriptors.dtype,
        )
        index.add(descriptors, positions)
        return index

    def add(self, descriptors: Descriptors, positions: Positions | None = None) -> np.ndarray:
        """Ids (rows,) int64 of the places added, in the order of the descriptors. An id is never given twice.

        Raises: ValueError, and nothing is added, if the descriptors come from another model, hold a number that isn't
            finite or rows that the metric can't compare, don't fit their paths or positions, or name a path that is
            there already.
        """
        vectors = self._checked_vectors(descriptors)
        rows, paths = len(vectors), [str(path) for path in descriptors.paths]
        if len(paths) != rows:
            raise ValueError(f"The descriptors have {rows} rows but {len(paths)} paths. Give one path for each row.")
        positions = Positions.unknown(rows) if positions is None else positions
        if len(positions) != rows:
            raise ValueError(
                f"There are {len(positions)} positions for {rows} descriptors. Give one for each row; photos that "
                "could not be embedded are in `descriptors.skipped` and have no row."
            )
        self._check_paths(paths)
        ids = np.arange(self._next_id, self._next_id + rows, dtype=np.int64)
        states = descriptors.states
        if states is None:
            states = file_states([text_to_path(path) for path in paths])
        added = pd.DataFrame(
            {
                "id": ids,
                "path": paths,
                "latitude": positions.latitude,
                "longitude": positions.longitude,
                "easting": positions.easting,
                "northing": positions.northing,
                "zone": np.asarray(positions.zone, np.int16),
                "south": np.asarray(positions.south, bool),
                **dict(zip(STATE_COLUMNS, states.T, strict=True)),
            }
        ).astype({"path": self.places["path"].dtype})
        places = pd.concat([self.places, added], ignore_index=True) if len(self.places) else added
        self._store.add(ids, vectors)
        self.places, self._next_id, self._threshold = places, self._next_id + rows, None
        return ids

    def remove(self, ids: int | Iterable[int]) -> int:
        """Number of places removed.

        Raises: ValueError, and nothing is removed, if an id isn't in the index.
        """
        ids = np.unique(_as_ids(ids, "ids"))
        known = self.places["id"].to_numpy()
        if missing := ids[~np.isin(ids, known)].tolist():
            raise ValueError(
                f"The index has no places with the ids {first_few(missing)}. Take ids from the column id of `places`; "
                "those of removed places aren't used again."
            )
        self._store.remove(ids)
        self.places = self.places[~np.isin(known, ids)].reset_index(drop=True)
        self._threshold = None
        return len(ids)

    def search(
        self,
        queries: Descriptors | np.ndarray,
        k: int = 5,
        *,
        near: tuple[float, float] | None = None,
        radius_m: float | None = None,
        exclude: int | Iterable[int] | None = None,
    ) -> Matches:
        """The k places most like each query.

        Args:
            queries: descriptors, or vectors (queries, dim) of which you know that the same model made them.
            k: matches a query; where there are fewer places the rest of a row is empty.
            near: (latitude, longitude) in degrees: only places within `radius_m` of it are ranked, as with a prior
                position. A place without coordinates is never near.
            radius_m: metres, inclusive.
            exclude: ids that aren't ranked, such as a robot's latest frames in a loop closure.

        Raises: ValueError if the queries come from another model, have another dim or hold numbers that aren't finite.
        """
        vectors = self._checked_vectors(queries)
        k = _as_whole(k, "k")
        scores, ids = self._store.search(vectors, k, self._allowed(near, radius_m, exclude))
        # -1, where there is no match, is found nowhere and must not become a row number.
        rows = np.where(ids < 0, -1, np.searchsorted(self.places["id"].to_numpy(), ids))
        return Matches(
            ids=ids,
            scores=scores,
            paths=_take(self.places["path"], rows, ""),
            latitude=_take(self.places["latitude"], rows, np.nan),
            longitude=_take(self.places["longitude"], rows, np.nan),
        )

    def vectors(self, ids: int | Iterable[int]) -> np.ndarray:
        """(ids, dim) float32 descriptors of places.

        Raises: ValueError if an id isn't in the index.
        """
        wanted = _as_ids(ids, "ids")
        if strangers := np.setdiff1d(wanted, self.places["id"].to_numpy()).tolist():
            raise ValueError(f"ids {first_few(strangers)} aren't in the index, which holds {len(self)} places.")
        return self._store.reconstruct(wanted)

    def save(self, folder: str | Path) -> None:
        """Write the index as one folder: vectors (FAISS), table of places (Parquet), `index.json`.

        A save that is interrupted, even by `kill -9`, leaves the index that was there before whole.

        Raises: RuntimeError if another run is writing the folder; NotADirectoryError if it is a file.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file, but an index is saved as a folder. Give another name.")
        with holding(folder):
            self.save_held(folder)

    def save_held(self, folder: Path) -> None:
        """As `save`, into a folder that the caller holds (`files.holding`)."""
        settings = {
            "model_name": self.model_name,
            "weight_hash": self.weight_hash,
            "processor": self.processor,
            "dtype": self.dtype,
            "store": self._store.kind,
            "dim": self.dim,
            "count": len(self),
            "next_id": self._next_id,
            "threshold": self.threshold.score,
            "threshold_rule": self.threshold.rule,
        }
        write_index_folder(folder, settings, self.places, self._store)

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> Self:
        """The index that `save` wrote.

        Args:
            folder: what was given to `save`.
            verify: compare the SHA-256 of the files and look at every vector too (about a second for every 1.5 GB), so
                that a single changed byte is found. Truncated and mixed folders are found without.

        Raises: FileNotFoundError if there is no index; ValueError if it is truncated, mixed or damaged.
        """
        settings, store, places = read_index_folder(folder, verify)
        return cls(
            places,
            store,
            model_name=settings["model_name"],
            weight_hash=settings["weight_hash"],
            processor=settings["processor"],
            dtype=settings["dtype"],
            next_id=settings["next_id"],
            threshold=Threshold(settings["threshold"], settings["threshold_rule"]),
        )

    def check_maker(
        self, model_name: str, weight_hash: str, dim: int, processor: dict[str, Any] | None, dtype: str | None
    ) -> None:
        """Refuses whoever made other descriptors than the index holds.

        Args:
            model_name, weight_hash, dim: of the model; 0 for a dim that nobody knows.
            processor, dtype: its settings; None, here or of an index of version 1, isn't compared.

        Raises: ValueError naming what differs.
        """
        pairs = {"processor": (self.processor, processor), "dtype": (self.dtype, dtype)}
        differing = {name: pair for name, pair in pairs.items() if None not in pair and pair[0] != pair[1]}
        others = [f"{name} {difference(*pair)}" for name, pair in differing.items()]
        if weight_hash != self.weight_hash and dim not in (0, self.dim):
            found = f"of {self.dim} numbers, but the model gives {dim}"
            remedy = f"Open the model at descriptor_dim={self.dim} (--dim) if it has a nested head"
        elif weight_hash != self.weight_hash:
            others_name, own = f"{model_name} (weights {weight_hash[:8]})", self.weight_hash[:8]
            found = f"of {self.model_name} (weights {own}), but the others come from {others_name}"
            remedy = f"Use {self.model_name}"
        elif others:
            found, remedy = (
                f"of {self.model_name} made with other settings ({', '.join(others)})",
                "Use those of the index",
            )
        else:
            return
        raise ValueError(
            f"The index holds descriptors {found}, and the two can't be compared. {remedy}, or build a new "
            "index with `d2vpr index`."
        )

    def _allowed(
        self, near: tuple[float, float] | None, radius_m: float | None, exclude: int | Iterable[int] | None
    ) -> np.ndarray | None:
        """Ids that may be ranked; None where all may."""
        if (near is None) != (radius_m is None):
            raise ValueError(
                f"near is {near} and radius_m is {radius_m}, but they go together: near=(latitude, longitude) in "
                "degrees and radius_m in metres."
            )
        if near is None and exclude is None:
            return None
        ids = self.places["id"].to_numpy()
        keep = np.ones(len(ids), bool) if near is None else self._within(near, radius_m)
        if exclude is not None:
            keep &= ~np.isin(ids, _as_ids(exclude, "exclude"))
        return ids[keep]

    def _within(self, near: tuple[float, float], radius_m: float) -> np.ndarray:
        """(places,) bool: within `radius_m` of a point."""
        try:
            latitude, longitude = (float(value) for value in near)
            radius_m = float(radius_m)
        except (TypeError, ValueError):
            latitude = longitude = radius_m = np.nan
        if not (abs(latitude) <= 90 and abs(longitude) <= 180 and 0 <= radius_m < np.inf):
            raise ValueError(
                f"near is {near} and radius_m is {radius_m}, but near must be (latitude, longitude) within ±90 and "
                "±180 degrees, and radius_m metres from 0."
            )
        degrees = self.places[["latitude", "longitude"]].to_numpy()
        # The exact distance is slow for millions of places; that on a sphere, within 1 % of it, leaves few in doubt.
        phi, theta = np.radians(degrees).T
        phi_0, theta_0 = np.radians([latitude, longitude])
        haversine = np.sin((phi - phi_0) / 2) ** 2 + np.cos(phi) * np.cos(phi_0) * np.sin((theta - theta_0) / 2) ** 2
        about_m = 2 * _EARTH_RADIUS_M * np.arcsin(np.sqrt(np.minimum(haversine, 1)))
        within = about_m < radius_m
        unsure = np.flatnonzero(np.abs(about_m - radius_m) <= 0.01 * radius_m + 1)
        within[unsure] = distances_m(latitude, longitude, *degrees[unsure].T) <= radius_m
        return within

    def _checked_vectors(self, queries: Descriptors | np.ndarray) -> np.ndarray:
        """Vectors (rows, dim) of descriptors that can be compared with this index."""
        if isinstance(queries, Descriptors):
            made_by = queries.model_name, queries.weight_hash, queries.vectors.shape[-1]
            self.check_maker(*made_by, queries.processor, queries.dtype)
        vectors = queries.vectors if isinstance(queries, Descriptors) else queries
        if vectors.ndim != 2 or vectors.shape[1] != self.dim or not np.issubdtype(vectors.dtype, np.floating):
            raise ValueError(
                f"The descriptors have shape {vectors.shape} and type {vectors.dtype}, but this index takes floating "
                f"numbers of shape (rows, {self.dim}), a single one as (1, {self.dim}). Embed the photos with "
                f"{self.model_name}."
            )
        if len(rows := rows_without_meaning(vectors, self.metric)):
            names = [] if isinstance(queries, np.ndarray) else [queries.paths[row] for row in rows[:3]]
            fault = "aren't of length 1" if self.metric == "inner_product" else "are 0 throughout"
            length = np.linalg.norm(vectors[rows[0]].astype(np.float64))
            raise ValueError(
                f"The descriptors in rows {first_few(rows.tolist())} {names or ''} hold numbers that aren't finite, or "
                f"{fault} (row {rows[0]} has length {length:.4g}); scores of such rows in this index, whose metric is "
                f"{self.metric}, mean nothing. Embed these photos again with the model and processor of the others."
            )
        return vectors

    def _check_paths(self, paths: Sequence[str]) -> None:
        """Refuse paths that are in the index already or twice in `paths`."""
        new = pd.Series(paths, dtype=self.places["path"].dtype)
        if (twice := new.isin(self.places["path"])).any():
            raise ValueError(
                f"The index already has {first_few(new[twice].tolist())}. Remove these places first (`remove` takes "
                "their ids), then add them again."
            )
        if (twice := new.duplicated()).any():
            raise ValueError(
                f"The descriptors name {first_few(new[twice].tolist())} more than once. Give each photo once."
            )


def _as_whole(value: int, name: str) -> int:
    try:
        whole = operator.index(value)
    except TypeError:
        whole = 0
    if whole < 1 or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, but must be an integer of at least 1.")
    return whole


def _as_ids(ids: int | Iterable[int], name: str) -> np.ndarray:
    array = np.asarray(ids if np.isscalar(ids) or isinstance(ids, np.ndarray) else list(ids))
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} holds {array.dtype} values, but ids are integers: the column id of `places`.")
    return array.astype(np.int64).ravel()


def _take(column: pd.Series, rows: np.ndarray, empty: object) -> np.ndarray:
    """Values of a column in the shape of `rows`; `empty` where a row is -1."""
    values = column.array.take(rows.ravel(), allow_fill=True)
    taken = np.asarray(values, dtype=object if isinstance(empty, str) else np.float64).reshape(rows.shape)
    taken[rows < 0] = empty
    return taken
