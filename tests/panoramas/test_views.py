"""Cut views show what lies in each direction, to a tenth of a pixel, wherever the camera looks."""

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from d2vpr_hf.panoramas.views import cut_views, heading_spans

# heading, pitch, roll, field: level, up, down, tilted, across the seam, over a pole, narrow and wide.
CAMERAS = [
    (0, 0, 0, 90),
    (37, 25, 0, 70),
    (-120, -35, 10, 60),
    (180, 0, 0, 75),
    (-171, 12, -30, 100),
    (725, -8, 90, 50),
    (90, 80, 5, 80),
    (10, -90, 0, 60),
    (200, 5, -3, 120),
]
HEIGHT, WIDTH = 96, 128


def directions(height, width):
    """(3, height, width) east, north and up of each pixel of a panorama: its colours say where they lie."""
    heading = ((torch.arange(width, dtype=torch.float64) + 0.5) / width - 0.5) * 2 * math.pi
    pitch = (0.5 - (torch.arange(height, dtype=torch.float64) + 0.5) / height)[:, None] * math.pi
    return torch.stack([heading.sin() * pitch.cos(), heading.cos() * pitch.cos(), pitch.sin().expand(height, width)])


def project(points, camera, height, width):
    """(points, 2) x and y in pixels of directions (points, 3), by rotations of scipy; nan behind the camera."""
    heading, pitch, roll, field = camera
    # East, north, up to right, ahead, up: the camera's turns undone one after the other.
    undo = Rotation.from_euler("ZXY", [-heading, pitch, roll], degrees=True).inv()
    right, ahead, up = torch.as_tensor(undo.apply(points.numpy())).T
    focal = width / 2 / math.tan(math.radians(field) / 2)
    x, y = width / 2 + focal * right / ahead, height / 2 - focal * up / ahead
    return torch.stack([x.where(ahead > 0, torch.nan), y.where(ahead > 0, torch.nan)], dim=1)


@pytest.mark.parametrize("camera", CAMERAS)
def test_every_pixel_shows_its_direction(camera):
    view = cut_views(directions(512, 1024), *camera, height=HEIGHT, width=WIDTH)[0].double()
    shown = (view / view.norm(dim=0)).flatten(1).T
    x, y = project(shown, camera, HEIGHT, WIDTH).T
    middle_x = (torch.arange(WIDTH) + 0.5).expand(HEIGHT, WIDTH).flatten()
    middle_y = (torch.arange(HEIGHT) + 0.5)[:, None].expand(HEIGHT, WIDTH).flatten()
    assert (x - middle_x).abs().max() < 0.1
    assert (y - middle_y).abs().max() < 0.1


@pytest.mark.parametrize("camera", CAMERAS)
def test_blobs_lie_where_they_were_painted(camera):
    size = 192
    pixels = directions(1024, 2048).float()
    # In the middle of the view and around it, half a degree wide: wider blobs spread unevenly in a flat picture.
    focal = size / 2 / math.tan(math.radians(camera[3]) / 2)
    heading, pitch, roll, _ = camera
    turn = Rotation.from_euler("ZXY", [-heading, pitch, roll], degrees=True)
    for x, y in ((96, 96), (40, 60), (150, 44), (50, 150), (140, 133)):
        ray = torch.as_tensor(turn.apply([(x - 96) / focal, 1, (96 - y) / focal]))
        ray = ray / ray.norm()
        nearness = torch.einsum("chw,c->hw", pixels, ray.float()).clamp(-1, 1)
        blob = torch.exp(-(torch.arccos(nearness) ** 2) / (2 * math.radians(0.4) ** 2))
        view = cut_views(blob.expand(3, -1, -1), *camera, height=size, width=size)[0, 0].double()
        assert view.max() > 0.15
        at = torch.arange(size) + 0.5
        found = (view.sum(dim=0) @ at.double() / view.sum(), view.sum(dim=1) @ at.double() / view.sum())
        assert math.dist(found, project(ray[None], camera, size, size)[0].tolist()) < 0.1


def test_a_view_is_the_same_across_the_seam_as_in_the_middle():
    torch.manual_seed(0)
    panorama = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 32), (128, 256), mode="bilinear")[0]
    middle = cut_views(panorama, 3, 10, 5, 80, height=64, width=64)
    seam = cut_views(panorama.roll(128, dims=-1), 183, 10, 5, 80, height=64, width=64)
    torch.testing.assert_close(seam, middle, rtol=0, atol=1e-4)
    assert middle.std() > 0.05


def test_views_of_several_panoramas_come_panorama_by_panorama():
    torch.manual_seed(0)
    panoramas = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    heading = torch.tensor([[0.0, 90.0, 200.0], [10.0, 100.0, 5.0]])
    together = cut_views(panoramas, heading, 5.0, 0.0, 70.0, height=14, width=28)
    assert together.shape == (6, 3, 14, 28)
    assert together.dtype == torch.float32
    pairs = zip(panoramas, heading, strict=True)
    alone = torch.cat([cut_views(*pair, 5.0, 0.0, 70.0, height=14, width=28) for pair in pairs])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-3)
    same = cut_views(panoramas, heading[0], 5.0, 0.0, 70.0, height=14, width=28)
    torch.testing.assert_close(same[:3], together[:3], rtol=0, atol=2e-3)
    assert torch.pdist(together.flatten(1)).min() > 10


def test_rays_in_parts_give_the_same_views(monkeypatch):
    panorama = torch.rand(3, 32, 64, generator=torch.Generator().manual_seed(0))
    heading = torch.arange(5) * 70.0
    whole = cut_views(panorama, heading, 0, 0, 60, height=16, width=16)
    monkeypatch.setattr("d2vpr_hf.panoramas.views._RAYS_AT_A_TIME", 600)
    assert torch.equal(cut_views(panorama, heading, 0, 0, 60, height=16, width=16), whole)
    assert whole.std() > 0.1


def test_a_coarse_view_is_the_mean_of_what_its_pixels_span():
    # Stripes of two panorama pixels, eight panorama pixels to a view's: read at points alone they would alias.
    stripes = (torch.arange(2048) // 2 % 2).float().expand(3, 1024, 2048)
    view = cut_views(stripes, 0, 0, 0, 90, height=80, width=80)
    assert (view - 0.5).abs().max() < 0.26
    assert (view[..., 35:45] - 0.5).abs().max() < 0.2
    fine = cut_views(stripes, 0, 0, 0, 20, height=400, width=400)
    assert fine.min() < 0.05
    assert fine.max() > 0.95


@pytest.mark.parametrize("camera", CAMERAS)
def test_spans_are_the_headings_that_a_view_shows(camera):
    first, last = (each.item() for each in heading_spans(*camera, height=HEIGHT, width=WIDTH))
    view = cut_views(directions(512, 1024), *camera, height=HEIGHT, width=WIDTH)[0].double()
    shown = torch.rad2deg(torch.atan2(view[0], view[1]))
    off = (shown - camera[0] + 180) % 360 - 180
    if last - first == 360:
        assert off.max() - off.min() > 350
    else:
        # Pixels' middles lie inside of the corners, by less than their own width.
        step = 2 * camera[3] / WIDTH / max(0.2, math.cos(math.radians(abs(camera[1]) + camera[3] / 2)))
        assert first - camera[0] <= off.min() <= first - camera[0] + step
        assert last - camera[0] - step <= off.max() <= last - camera[0]


@pytest.mark.parametrize("field", [0.0, 180.0, -10.0, float("nan")])
def test_fields_that_no_flat_picture_has_are_refused(field):
    with pytest.raises(ValueError, match="less than 180 degrees"):
        cut_views(torch.zeros(3, 8, 16), 0, 0, 0, field, height=4, width=4)


def test_colours_at_the_end_are_refused():
    with pytest.raises(ValueError, match=r"\(8, 16, 3\)"):
        cut_views(torch.zeros(8, 16, 3), 0, 0, 0, 60, height=4, width=4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_views():
    panorama = torch.rand(3, 64, 128, generator=torch.Generator().manual_seed(0))
    here = cut_views(panorama, torch.tensor([0.0, 170.0]), 10, 5, 80, height=32, width=32)
    there = cut_views(panorama.cuda(), torch.tensor([0.0, 170.0]), 10, 5, 80, height=32, width=32)
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=1e-3)
