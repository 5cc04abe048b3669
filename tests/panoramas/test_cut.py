"""Views of panorama files bear the benchmarks' names, which our own reader takes, and show what they say."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from d2vpr_hf.panoramas.cut import cut_panoramas, open_panorama
from d2vpr_hf.photos.images import UnreadableImage, open_image
from d2vpr_hf.photos.positions import Positions


def write_panorama(path, *, latitude=None, longitude=None, moment=None):
    """A panorama whose red rises with the heading, from 0 at -180 degrees to 255 at 180."""
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, 128)
    exif = Image.Exif()
    if moment:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = moment
    if latitude is not None:
        exif.get_ifd(ExifTags.IFD.GPSInfo).update(
            {
                ExifTags.GPS.GPSLatitudeRef: "N" if latitude >= 0 else "S",
                ExifTags.GPS.GPSLatitude: (IFDRational(round(abs(latitude) * 10**6), 10**6), 0, 0),
                ExifTags.GPS.GPSLongitudeRef: "E" if longitude >= 0 else "W",
                ExifTags.GPS.GPSLongitude: (IFDRational(round(abs(longitude) * 10**6), 10**6), 0, 0),
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95, exif=exif)
    return path


@pytest.mark.parametrize(
    ("latitude", "longitude", "zone", "band"), [(47.3769, 8.5417, 32, "T"), (-33.8568, 151.2153, 56, "H")]
)
def test_names_hold_place_heading_pitch_and_time(latitude, longitude, zone, band, tmp_path):
    path = write_panorama(
        tmp_path / "market@2.jpg", latitude=latitude, longitude=longitude, moment="2024:05:06 07:08:09"
    )
    views = cut_panoramas(path, tmp_path / "out", headings=4, pitch_deg=-5, height=24, width=32, progress=False)
    assert [view.name.split("@")[9] for view in views.paths] == ["000", "090", "180", "270"]
    fields = views.paths[1].name.split("@")
    assert len(fields) == 16
    assert [len(part) for part in fields[1:3]] == [10, 10]
    assert fields[3:5] == [f"{zone:02d}", band]
    assert fields[7:] == ["market_2", "", "090", "-05", "", "", "20240506_070809", "", ".jpg"]
    read, taken = Positions.from_names(views.paths), Positions.from_photos([path])
    for column in ("easting", "northing"):
        np.testing.assert_allclose(getattr(read, column), getattr(taken, column).repeat(4), atol=0.005)
    np.testing.assert_allclose(read.latitude, latitude, atol=1e-5)
    np.testing.assert_allclose(read.longitude, longitude, atol=1e-5)
    assert set(read.zone) == {zone}
    assert set(read.south) == {latitude < 0}


def test_a_view_shows_the_heading_of_its_name(tmp_path):
    path = write_panorama(tmp_path / "p.png")
    views = cut_panoramas(path, tmp_path / "out", headings=8, field_deg=30, height=24, width=32, progress=False)
    assert [view.name for view in views.paths[:2]] == [f"@@@@@@@p@@{turn}@000@@@@@.jpg" for turn in ("000", "045")]
    assert not Positions.from_names(views.paths).known.any()
    for view in views.paths:
        heading = (int(view.name.split("@")[9]) + 180) % 360
        if heading:  # the seam itself is half black, half red
            middle = np.asarray(open_image(view))[10:14, 14:18, 0].mean()
            assert middle == pytest.approx(255 * heading / 360, abs=4)


def test_a_panorama_whose_name_holds_its_place_hands_it_on(tmp_path):
    path = write_panorama(tmp_path / "@0500000.00@0200000.00@31@N@001.80@0003.00@pano7@@@@@@@@.jpg")
    views = cut_panoramas(path, tmp_path / "out", headings=1, height=8, width=8, progress=False)
    fields = views.paths[0].name.split("@")
    assert fields[1:5] == ["0500000.00", "0200000.00", "31", "N"]
    assert fields[7] == "pano7"


def test_folders_are_mirrored_and_what_is_no_panorama_is_skipped(tmp_path):
    source = tmp_path / "in"
    write_panorama(source / "a" / "p.png")
    write_panorama(source / "b" / "p.png")
    Image.new("RGB", (100, 90)).save(source / "photo.jpg")
    (source / "broken.jpg").write_bytes(b"no image")
    out = source / "views"
    for _ in range(2):  # the second time the first views lie inside of the source
        views = cut_panoramas(source, out, headings=2, height=8, width=16, progress=False)
        assert [path.relative_to(out).parent.name for path in views.paths] == ["a", "a", "b", "b"]
        assert sorted(out.rglob("*.jpg")) == sorted(views.paths)
        reasons = dict(views.skipped)
        assert reasons.keys() == {str(source / "broken.jpg"), str(source / "photo.jpg")}
        assert "100 x 90 pixels" in reasons[str(source / "photo.jpg")]
    with Image.open(views.paths[0]) as view:
        assert view.size == (16, 8)


def test_what_cannot_be_named_or_cut_is_refused(tmp_path):
    write_panorama(tmp_path / "in" / "p.png")
    write_panorama(tmp_path / "in" / "p.jpg")
    with pytest.raises(ValueError, match=r"p\.jpg and p\.png would give views of the same names"):
        cut_panoramas(tmp_path / "in", tmp_path / "out", progress=False)
    with pytest.raises(ValueError, match="headings is 361"):
        cut_panoramas(tmp_path / "in" / "p.png", tmp_path / "out", headings=361)
    with pytest.raises(FileNotFoundError, match="isn't there"):
        cut_panoramas(tmp_path / "missing", tmp_path / "out")
    with pytest.raises(ValueError, match="holds no image"):
        cut_panoramas(tmp_path, tmp_path)
    assert not (tmp_path / "out").exists()


def with_xmp(path, *, attributes="", elements=""):
    """The JPEG with an XMP packet, as panorama programs write it, either way that XMP allows."""
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description '
        f'xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" {attributes}>{elements}</rdf:Description></rdf:RDF>'
        "</x:xmpmeta>"
    )
    content = b"http://ns.adobe.com/xap/1.0/\0" + packet.encode()
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2) + content + data[2:])
    return path


@pytest.mark.parametrize(
    "xmp",
    [
        {"attributes": 'GPano:PoseHeadingDegrees="90.0"'},
        {"elements": "<GPano:PoseHeadingDegrees>90</GPano:PoseHeadingDegrees>"},
    ],
)
def test_headings_count_from_north_where_the_panorama_says_where_its_middle_looks(xmp, tmp_path):
    path = with_xmp(write_panorama(tmp_path / "p.jpg"), **xmp)
    views = cut_panoramas(path, tmp_path / "out", headings=8, field_deg=30, height=24, width=32, progress=False)
    assert [int(view.name.split("@")[9]) for view in views.paths] == list(range(0, 360, 45))
    for view in views.paths:
        # The middle column, 180 degrees from the left edge, looks east.
        from_left = (int(view.name.split("@")[9]) - 90 + 180) % 360
        if from_left:
            middle = np.asarray(open_image(view))[10:14, 14:18, 0].mean()
            assert middle == pytest.approx(255 * from_left / 360, abs=4)


def test_a_heading_that_is_no_number_counts_for_nothing(tmp_path):
    plain = write_panorama(tmp_path / "p.jpg")
    expected = cut_panoramas(plain, tmp_path / "plain", headings=2, height=8, width=16, progress=False)
    for number, value in enumerate(("nan", "north", "", "1e400", "-..")):
        path = with_xmp(
            write_panorama(tmp_path / f"{number}" / "p.jpg"), attributes=f'GPano:PoseHeadingDegrees="{value}"'
        )
        views = cut_panoramas(path, tmp_path / f"out{number}", headings=2, height=8, width=16, progress=False)
        assert [view.read_bytes() for view in views.paths] == [view.read_bytes() for view in expected.paths]


def test_a_part_of_a_sphere_is_refused_and_the_whole_is_not(tmp_path):
    def panorama(name, width, height):
        area = f'GPano:CroppedAreaImageWidthPixels="{width}" GPano:CroppedAreaImageHeightPixels="{height}"'
        full = 'GPano:FullPanoWidthPixels="8000" GPano:FullPanoHeightPixels="4000"'
        return with_xmp(write_panorama(tmp_path / "in" / name), attributes=f"{area} {full}")

    panorama("part.jpg", 4000, 2000)
    panorama("whole.jpg", 8000, 4000)
    views = cut_panoramas(tmp_path / "in", tmp_path / "out", headings=1, height=8, width=16, progress=False)
    assert [path.name.split("@")[7] for path in views.paths] == ["whole"]
    assert [reason for _, reason in views.skipped] == [
        "180 x 90 degrees of a sphere by its own account (GPano), but views need all 360 x 180"
    ]


def test_a_panorama_is_twice_as_wide_as_high(tmp_path):
    pixels = open_panorama(write_panorama(tmp_path / "p.png"))
    assert pixels.shape == (3, 64, 128)
    assert pixels.dtype == torch.uint8
    assert pixels[0, 0, -1] == 255
    Image.new("RGB", (128, 65)).save(tmp_path / "almost.png")
    assert open_panorama(tmp_path / "almost.png").shape == (3, 65, 128)
    Image.new("RGB", (128, 66)).save(tmp_path / "photo.png")
    with pytest.raises(UnreadableImage, match="twice as wide as high"):
        open_panorama(tmp_path / "photo.png")
