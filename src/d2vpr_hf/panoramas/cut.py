"""Opens equirectangular panoramas, and writes views of them under the field's names."""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..files import path_to_text, replace_file
from ..photos.folder import list_images
from ..photos.images import UnreadableImage, open_image, read_exif
from ..photos.names import UtmName
from ..photos.positions import Positions
from .views import cut_views

JPEG_QUALITY = 90
# Some programs are a row off.
_PIXELS_OFF = 2
# Numbers of a panorama's XMP packet, as attributes or as elements.
_GPANO = re.compile(rb"""GPano:(\w+)(?:\s*=\s*["']|>)\s*(-?[0-9]+(?:\.[0-9]+)?)\s*["'<]""")


@dataclass(frozen=True)
class WrittenViews:
    """Views on disk.

    Attributes:
        paths: of the views, panorama by panorama.
        skipped: path and reason of each panorama that couldn't be used.
    """

    paths: list[Path]
    skipped: list[tuple[str, str]]


def open_panorama(path: str | Path) -> torch.Tensor:
    """(3, height, width) uint8 of an equirectangular image.

    Raises: UnreadableImage if it can't be opened, isn't twice as wide as high, or says that it is a part of a sphere.
    """
    image = open_image(path)
    if abs(image.width - 2 * image.height) > _PIXELS_OFF:
        raise UnreadableImage(
            path, f"{image.width} x {image.height} pixels, but an equirectangular panorama is twice as wide as high"
        )
    said = _read_gpano(path)
    degrees = []
    for side, whole in (("Width", 360), ("Height", 180)):
        shown, full = (said.get(f"{name}{side}Pixels", 0.0) for name in ("CroppedAreaImage", "FullPano"))
        degrees.append(whole * (shown / full if 0 < shown < 0.99 * full else 1))
    if degrees != [360, 180]:
        raise UnreadableImage(
            path,
            "{:.0f} x {:.0f} degrees of a sphere by its own account (GPano), but views need all 360 x 180".format(
                *degrees
            ),
        )
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _read_gpano(path: str | Path) -> dict[str, float]:
    """What the panorama's XMP packet says of its sphere, in numbers."""
    return {name.decode(): float(number) for name, number in _GPANO.findall(read_exif(path).xmp)}


def cut_panoramas(
    source: str | Path,
    out: str | Path,
    *,
    headings: int = 12,
    pitch_deg: float = 0.0,
    field_deg: float = 75.0,
    height: int = 480,
    width: int = 640,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> WrittenViews:
    """Writes JPEG views of panoramas, evenly spread in heading, under the field's names.

    A name holds where the panorama was taken, if its own name or EXIF says so, the name of its file as the panorama's,
    heading and pitch in whole degrees, and when it was taken. Headings count clockwise from north where the panorama
    says where its centre column looks (GPano:PoseHeadingDegrees), and else from that column. The views of a panorama
    in a subfolder lie in one of the same name.

    Args:
        source: a panorama, or a folder of them, searched with its subfolders.
        out: folder for the views; files of the same name are replaced.
        headings: views of each panorama, 1 to 360, the first at heading 0.
        pitch_deg: upwards, -90 to 90.
        field_deg: horizontal field of view, below 180.
        height, width: pixels of the views.
        device: where the views are computed.
        progress: whether to show a bar on stderr.

    Raises: FileNotFoundError if there is no such file or folder; ValueError if the folder holds no image, two
        panoramas share a name, or a number is out of range.
    Source: naming scheme of the deep visual geo-localization benchmark (Berton et al., CVPR 2022).
    """
    if not 1 <= headings <= 360 or not -90 <= pitch_deg <= 90:
        raise ValueError(
            f"headings is {headings} and pitch_deg {pitch_deg}; expected 1 to 360 headings, which names tell apart, "
            "and a pitch from -90 to 90 degrees. Give such numbers."
        )
    source, out = Path(source), Path(out)
    root = source if source.is_dir() else source.parent
    panoramas = list_panoramas(source, but_not_in=out)
    _refuse_same_stems(panoramas, root)
    turns = torch.arange(headings) * 360 / headings
    written: list[Path] = []
    skipped: list[tuple[str, str]] = []
    with ThreadPoolExecutor() as pool:
        named = {path_to_text(path): path for path in panoramas}
        for text, panorama in open_all(named, open_panorama, skipped, progress=progress):
            path = named[text]
            middle = _read_gpano(path).get("PoseHeadingDegrees", 0.0)
            views = cut_views(
                panorama.to(device), turns - middle, pitch_deg, 0.0, field_deg, height=height, width=width
            )
            folder = out / path.parent.relative_to(root)
            names = [folder / name for name in _name_views(path, turns.tolist(), pitch_deg)]
            write_views(names, as_images(views), pool)
            written += names
    return WrittenViews(written, skipped)


def open_all(
    paths: Mapping[str, Path], open_one: Callable[[Path], Any], skipped: list[tuple[str, str]], *, progress: bool
) -> Iterator[tuple[str, Any]]:
    """Name and content of each file that can be used; names and reasons of the others join `skipped`."""
    for name, path in tqdm(paths.items(), desc="cutting views", unit="image", disable=not progress):
        try:
            yield name, open_one(path)
        except UnreadableImage as error:
            skipped.append((name, error.reason))


def list_panoramas(source: Path, *, but_not_in: Path | None = None) -> list[Path]:
    """The file itself, or what is named like an image in the folder, sorted by path, less what lies in another.

    Raises: FileNotFoundError if there is no such file or folder; ValueError if the folder holds no image.
    """
    if not source.exists():
        raise FileNotFoundError(f"{path_to_text(source)} isn't there. Give a panorama, or a folder of panoramas.")
    if not source.is_dir():
        return [source]
    left_out = but_not_in.absolute() if but_not_in is not None else None
    found = [path for path in list_images(source) if left_out is None or left_out not in path.absolute().parents]
    if not found:
        raise ValueError(f"{path_to_text(source)} holds no image (such as .jpg or .png). Give a folder of panoramas.")
    return found


def write_views(paths: Sequence[Path], views: Iterable[Image.Image], pool: ThreadPoolExecutor) -> None:
    """Writes views as JPEG, each whole or not at all."""

    def write(path: Path, view: Image.Image) -> None:
        buffer = io.BytesIO()
        view.save(buffer, "JPEG", quality=JPEG_QUALITY)
        replace_file(path, buffer.getvalue())

    list(pool.map(write, paths, views))


def as_images(views: torch.Tensor) -> Iterator[Image.Image]:
    """Of (views, 3, height, width) from 0 to 255."""
    yield from map(Image.fromarray, views.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def _refuse_same_stems(panoramas: Sequence[Path], root: Path) -> None:
    """Views are named after their panorama's stem, so that of two with the same one's views would be lost."""
    seen: dict[Path, Path] = {}
    for path in panoramas:
        if other := seen.get(stem := path.with_name(_pano_id(path))):
            raise ValueError(
                f"{path_to_text(other.relative_to(root))} and {path_to_text(path.relative_to(root))} would give views "
                "of the same names. Rename one of them, or move it into a folder of its own."
            )
        seen[stem] = path


def _pano_id(path: Path) -> str:
    # "@" separates the fields of a name. A name that has them already gives the panorama's own.
    known = UtmName.read(path)
    return (known and known.panorama) or path_to_text(path.stem).replace("@", "_")


def _name_views(path: Path, headings: Sequence[float], pitch_deg: float) -> list[str]:
    """The names of a panorama's views by their headings in degrees."""
    place = Positions.from_photos([path])
    columns = (place.easting, place.northing, place.zone, place.latitude, place.longitude)
    name = UtmName.of_place(
        *(column[0].item() for column in columns),
        panorama=_pano_id(path),
        pitch=f"{round(pitch_deg):03d}",
        time=read_exif(path).time,
    )
    return [str(replace(name, heading=f"{round(heading) % 360:03d}")) for heading in headings]
