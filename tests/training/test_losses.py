"""Losses against numbers worked out by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from d2vpr_hf.training.losses import DistillationLoss, MultiSimilarity, StudentProjection
from d2vpr_hf.training.teachers import TeacherOutput


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_regions(first, second):
    """(1, 14, 2) regional descriptors, of which the first two aren't zero."""
    regional = torch.zeros(1, 14, 2)
    regional[0, 0], regional[0, 1] = torch.tensor(first), torch.tensor(second)
    return regional


def test_cosine_of_the_joined_descriptors_by_hand():
    # Joined they are (3, 0, 0, 4) and (3, 0, 4, 0): inner product 9, lengths 5 and 5.
    student, teacher = two_regions([3.0, 0.0], [0.0, 4.0]), two_regions([3.0, 0.0], [4.0, 0.0])
    terms = DistillationLoss()(student, TeacherOutput(teacher))
    assert terms.descriptor.item() == pytest.approx(1 - 9 / 25)
    assert terms.loss.item() == pytest.approx(1 - 9 / 25)
    # Region by region the cosines are 1, 0 and, for regions of nothing, 0.
    assert terms.regions.item() == pytest.approx(1 - 1 / 14)
    assert terms.tokens is None
    weighted = DistillationLoss(region_weight=0.5)(student, TeacherOutput(teacher))
    assert weighted.loss.item() == pytest.approx(1 - 9 / 25 + 0.5 * (1 - 1 / 14))


def test_mse_is_twice_one_minus_cosine_over_the_numbers():
    student, teacher = random(4, 14, 768), TeacherOutput(random(4, 14, 768, seed=1))
    cosine, mse = DistillationLoss("cosine")(student, teacher), DistillationLoss("mse")(student, teacher)
    assert mse.loss.item() == pytest.approx(2 * cosine.loss.item() / (14 * 768), rel=1e-4)
    # A student that knows nothing: cosine about 0.
    assert cosine.loss.item() == pytest.approx(1, abs=0.05)
    assert mse.loss.item() == pytest.approx(1.86e-4, rel=0.05)


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_the_teachers_equal_has_no_loss(kind):
    regional, tokens = random(3, 14, 8), random(3, 8, 4, 5)
    terms = DistillationLoss(kind, region_weight=1.0, token_weight=1.0)(
        7 * regional, TeacherOutput(regional, tokens), 3 * tokens
    )
    assert terms.loss.item() == pytest.approx(0, abs=1e-6)
    worse = DistillationLoss(kind)(regional + random(3, 14, 8, seed=1), TeacherOutput(regional))
    assert worse.loss.item() > 1e-3


def test_tokens_are_compared_patch_by_patch():
    student, teacher = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    # Two patches: (1, 0) against (2, 0), cosine 1; (1, 1) against (1, 0), cosine 1 / sqrt(2).
    student[0, :, 0, 0], teacher[0, :, 0, 0] = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0])
    student[0, :, 0, 1], teacher[0, :, 0, 1] = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])
    regional = random(1, 14, 2)
    terms = DistillationLoss(token_weight=2.0)(regional, TeacherOutput(regional, teacher), student)
    assert terms.tokens.item() == pytest.approx(1 - (1 + 1 / math.sqrt(2)) / 2)
    assert terms.loss.item() == pytest.approx(2 * terms.tokens.item(), abs=1e-6)


def test_the_teachers_map_comes_to_the_students_grid():
    regional, coarse = random(1, 14, 3), random(1, 3, 4, 4)
    finer = F.interpolate(coarse, size=(8, 6), mode="bilinear")
    loss = DistillationLoss(token_weight=1.0)
    assert loss(regional, TeacherOutput(regional, coarse), finer).tokens.item() == pytest.approx(0, abs=1e-6)
    assert loss(regional, TeacherOutput(regional, coarse), finer.flip(3)).tokens.item() > 0.1


def test_every_term_reaches_the_student():
    regional, tokens = random(2, 14, 8).requires_grad_(), random(2, 8, 4, 4).requires_grad_()
    teacher = TeacherOutput(random(2, 14, 8, seed=1), random(2, 8, 4, 4, seed=2))
    terms = DistillationLoss(region_weight=1.0, token_weight=1.0)(regional, teacher, tokens)
    for term in (terms.descriptor, terms.regions):
        assert torch.autograd.grad(term, regional, retain_graph=True)[0].abs().max() > 0
    assert torch.autograd.grad(terms.tokens, tokens, retain_graph=True)[0].abs().max() > 0
    terms.loss.backward()
    assert regional.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_half_precision_changes_no_loss_but_by_its_inputs(kind):
    student, teacher = random(3, 14, 8), TeacherOutput(random(3, 14, 8, seed=1), random(3, 8, 2, 2))
    loss = DistillationLoss(kind, region_weight=1.0, token_weight=1.0)
    exact = loss(student, teacher, teacher.patch_tokens.flip(0)).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = loss(student, teacher, teacher.patch_tokens.flip(0)).loss
        halved = loss(student.bfloat16(), teacher, teacher.patch_tokens.flip(0)).loss
    assert torch.equal(exact, autocast)
    assert halved.dtype == torch.float32
    assert halved.item() == pytest.approx(exact.item(), rel=0.01)


def test_what_does_not_fit_is_refused():
    regional, tokens = random(2, 14, 8), random(2, 8, 4, 4)
    with pytest.raises(ValueError, match=r"kind is 'cosin', but must be one of cosine, mse. Did you mean cosine"):
        DistillationLoss("cosin")
    with pytest.raises(ValueError, match="token_weight -1; neither may be negative"):
        DistillationLoss(token_weight=-1)
    with pytest.raises(ValueError, match=r"shape \(2, 14, 8\), the teacher's \(2, 14, 12\)"):
        DistillationLoss()(regional, TeacherOutput(random(2, 14, 12)))
    loss = DistillationLoss(token_weight=1.0)
    with pytest.raises(ValueError, match="the teacher's are missing"):
        loss(regional, TeacherOutput(regional), tokens)
    with pytest.raises(ValueError, match="the student's are missing"):
        loss(regional, TeacherOutput(regional, tokens))
    with pytest.raises(ValueError, match="images or width differ"):
        loss(regional, TeacherOutput(regional, tokens), tokens[:, :4])


def test_a_student_of_the_teachers_width_is_not_projected():
    projection, regional, tokens = StudentProjection(8, 8), random(2, 14, 8), random(2, 8, 4, 4)
    assert not list(projection.parameters())
    found = projection(regional, tokens)
    assert found[0] is regional
    assert found[1] is tokens


def test_a_narrower_student_is_projected_and_keeps_its_cosines():
    projection = StudentProjection(8, 24)
    regional, tokens = random(2, 14, 8), random(2, 8, 4, 5)
    wide, wide_tokens = projection(regional, tokens)
    assert (wide.shape, wide_tokens.shape) == ((2, 14, 24), (2, 24, 4, 5))
    torch.testing.assert_close(wide_tokens[1, :, 3, 2], projection.linear.weight @ tokens[1, :, 3, 2])
    torch.testing.assert_close(wide @ wide.transpose(1, 2), regional @ regional.transpose(1, 2))
    assert projection(regional)[1] is None


def test_a_projected_student_learns_its_teacher():
    """Both the student's vectors and the projection follow the loss."""
    torch.manual_seed(0)
    projection, regional = StudentProjection(8, 12), random(4, 14, 8).requires_grad_()
    teacher = TeacherOutput(random(4, 14, 12, seed=1))
    optimiser = torch.optim.Adam([regional, *projection.parameters()], lr=0.05)
    start = DistillationLoss()(projection(regional)[0], teacher).loss.item()
    for _ in range(60):
        loss = DistillationLoss()(projection(regional)[0], teacher).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert start > 0.8
    assert loss.item() < 0.3


# Unit vectors at these angles, so that similarities are cosines of differences.
ANGLES, PLACES = [0.0, 0.5, 0.6, 2.5], [0, 0, 1, 1]


def by_hand(angles, places, alpha, beta, base, epsilon):
    """The formula, pair by pair."""
    images, losses, anchors = range(len(angles)), [], set()
    for anchor in images:
        alike = {other: math.cos(angles[anchor] - angles[other]) for other in images if other != anchor}
        own = [other for other in alike if places[other] == places[anchor]]
        strange = [other for other in alike if places[other] != places[anchor]]
        positives = [alike[other] for other in own if alike[other] - epsilon < max(alike[each] for each in strange)]
        negatives = [alike[other] for other in strange if alike[other] + epsilon > min(alike[each] for each in own)]
        loss = math.log(1 + sum(math.exp(-alpha * (each - base)) for each in positives)) / alpha
        loss += math.log(1 + sum(math.exp(beta * (each - base)) for each in negatives)) / beta
        losses.append(loss)
        if positives or negatives:
            anchors.add(anchor)
    return sum(losses) / len(losses), len(anchors) / len(losses)


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 1.0, "beta": 50.0, "base": 0.0, "epsilon": 0.1},
        {"alpha": 2.0, "beta": 10.0, "base": 0.5, "epsilon": 0.01},
    ],
)
def test_multi_similarity_is_the_formula_written_out(settings):
    angles = torch.tensor(ANGLES)
    descriptors = torch.stack([angles.cos(), angles.sin()], dim=1)
    terms = MultiSimilarity(**settings)(3 * descriptors, torch.tensor(PLACES))
    loss, mined_share = by_hand(ANGLES, PLACES, **settings)
    assert terms.loss.item() == pytest.approx(loss, rel=1e-5)
    assert terms.mined_share == mined_share
    assert loss > 0.5


def test_multi_similarity_counts_the_anchors_of_mined_pairs():
    # Photos 0 and 1 are alike, and no stranger comes near them. Photo 2 is more like both (cosine 0.36 and 0.41) than
    # like photo 3 of its own place (0.17); photo 3 is not (-0.86 and -0.83). So photo 2 alone is an anchor.
    angles = torch.tensor([0.0, 0.05, 1.2, 2.6])
    descriptors = torch.stack([angles.cos(), angles.sin()], dim=1).requires_grad_()
    terms = MultiSimilarity()(descriptors, torch.tensor([5, 5, 9, 9]))
    loss, mined_share = by_hand(angles.tolist(), [5, 5, 9, 9], 1.0, 50.0, 0.0, 0.1)
    assert terms.loss.item() == pytest.approx(loss, rel=1e-5)
    assert terms.mined_share == mined_share == 1 / 4
    terms.loss.backward()
    assert descriptors.grad.norm(dim=1).max() > 0


@pytest.mark.parametrize(
    ("angles", "places"),
    [
        ([0.0, 0.01, 3.0, 3.01], [0, 0, 1, 1]),  # all places told apart
        ([0.0, 0.5, 1.0], [4, 4, 4]),  # a single place
        ([0.0, 0.5, 1.0], [1, 2, 3]),  # no two photos of a place
    ],
)
def test_nothing_mined_is_no_loss_and_no_crash(angles, places):
    angles = torch.tensor(angles)
    descriptors = torch.stack([angles.cos(), angles.sin()], dim=1).requires_grad_()
    terms = MultiSimilarity()(descriptors, torch.tensor(places))
    assert (terms.loss.item(), terms.mined_share) == (0, 0)
    terms.loss.backward()
    assert descriptors.grad.count_nonzero() == 0


def test_multi_similarity_mines_in_float32():
    descriptors, places = random(12, 16), torch.arange(12) // 3
    exact = MultiSimilarity()(descriptors, places)
    with torch.autocast("cpu", dtype=torch.float16):
        autocast = MultiSimilarity()(descriptors, places)
        halved = MultiSimilarity()(descriptors.half(), places)
    assert torch.equal(autocast.loss, exact.loss)
    assert halved.loss.dtype == torch.float32
    assert halved.loss.item() == pytest.approx(exact.loss.item(), rel=0.01)
    assert exact.mined_share > 0.5


def test_multi_similarity_brings_places_together():
    angles = torch.tensor(ANGLES, requires_grad=True)
    loss, places = MultiSimilarity(), torch.tensor(PLACES)
    for _ in range(200):
        terms = loss(torch.stack([angles.cos(), angles.sin()], dim=1), places)
        (gradient,) = torch.autograd.grad(terms.loss, angles)
        angles = (angles - 0.05 * gradient).detach().requires_grad_()
    start, end = torch.tensor(ANGLES).diff().cos(), angles.diff().cos()
    assert end[2] > start[2] + 0.5  # photos 2 and 3, of one place
    assert end[1] < start[1]  # photos 1 and 2, of two


@pytest.mark.parametrize("shape", [(3,), (4, 1), ()])
def test_a_place_for_each_descriptor(shape):
    with pytest.raises(ValueError, match="Give the place of each image"):
        MultiSimilarity()(random(4, 8), torch.zeros(shape, dtype=torch.long))
