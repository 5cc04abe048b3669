import time
from itertools import chain, combinations

import numpy as np
import pytest
import torch

from d2vpr_hf.training.data.sampler import PlaceSampler

# 20 places of 5 images, rows of a place far from each other; place numbers with gaps.
PLACES = np.tile(np.arange(20) * 7 + 3, 5)


def steps_of(sampler):
    return [[row for row, _ in step] for step in sampler]


def places_of(sampler, places=PLACES):
    return [places[step].reshape(sampler.places_per_batch, -1)[:, 0].tolist() for step in steps_of(sampler)]


def test_a_step_holds_images_of_different_places_next_to_each_other():
    sampler = PlaceSampler(PLACES, places_per_batch=6, images_per_place=4)
    steps = steps_of(sampler)
    assert len(sampler) == len(steps) == 3
    for step in steps:
        shown = PLACES[step].reshape(6, 4)
        assert (shown == shown[:, :1]).all()
        assert len(set(shown[:, 0])) == 6
        assert len(set(step)) == 24
    assert len({row for step in steps for row in step}) == 3 * 24
    assert sampler.places_used - 6 * sampler.steps_per_epoch == 2


def test_epochs_differ_and_seeds_repeat_them():
    sampler = PlaceSampler(PLACES, places_per_batch=4, images_per_place=3, seed=5)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert epochs[-1] == list(sampler)
    assert epochs[0] != epochs[1] != epochs[2]
    orders = [[PLACES[row] for step in epoch for row, _ in step] for epoch in epochs]
    assert orders[0] != orders[1]
    # Of each place other images, in other order; three of five are the same with chance 1/60.
    drawn = [{place: [] for place in set(PLACES)} for _ in epochs]
    for found, epoch in zip(drawn, epochs, strict=True):
        for step in epoch:
            for row, _ in step:
                found[PLACES[row]].append(row)
    assert sum(drawn[0][place] != drawn[1][place] for place in drawn[0]) > 15
    again = PlaceSampler(PLACES, places_per_batch=4, images_per_place=3, seed=5)
    again.set_epoch(2)
    assert list(again) == epochs[2]
    other = PlaceSampler(PLACES, places_per_batch=4, images_per_place=3, seed=6)
    assert list(other) != epochs[0]


def test_draw_seeds_depend_on_seed_epoch_and_row_alone():
    def seeds(epoch=0, **options):
        sampler = PlaceSampler(PLACES, **{"places_per_batch": 4, "images_per_place": 5, **options})
        sampler.set_epoch(epoch)
        return dict(draw for step in sampler for draw in step)

    first = seeds()
    assert len(first) == len(set(first.values())) == 100
    assert first == seeds(places_per_batch=10)
    assert not set(first.values()) & set(seeds(epoch=1).values())
    assert not set(first.values()) & set(seeds(seed=1).values())


def test_global_random_states_stay_and_do_not_matter():
    np.random.seed(0)  # noqa: NPY002 - the state that must not matter
    torch.manual_seed(0)
    first = list(PlaceSampler(PLACES, places_per_batch=4, images_per_place=3))
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    assert list(PlaceSampler(PLACES, places_per_batch=4, images_per_place=3)) == first
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    list(PlaceSampler(PLACES, places_per_batch=4, images_per_place=3))
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])  # noqa: NPY002


CONFLICTS = {int(place): {int(place) + 7} for place in PLACES[:19]}


@pytest.mark.parametrize("conflicts", [None, CONFLICTS])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_draw_together_what_one_draws(processes, conflicts):
    options = {"images_per_place": 3, "seed": 2, "conflicts": conflicts}
    ranks = [
        PlaceSampler(PLACES, places_per_batch=2, rank=rank, processes=processes, **options) for rank in range(processes)
    ]
    one = PlaceSampler(PLACES, places_per_batch=2 * processes, **options)
    for epoch in range(3):
        for sampler in (one, *ranks):
            sampler.set_epoch(epoch)
        together = [[*chain.from_iterable(parts)] for parts in zip(*ranks, strict=True)]
        assert together == list(one)
        assert len(together) == len(ranks[0]) > 1
        assert all(len({PLACES[row] for row, _ in step}) == 2 * processes for step in together)


@pytest.mark.parametrize("conflicts", [None, CONFLICTS])
def test_an_epoch_goes_on_in_the_middle(conflicts):
    sampler = PlaceSampler(PLACES, places_per_batch=3, images_per_place=2, conflicts=conflicts)
    sampler.set_epoch(4)
    whole = list(sampler)
    for first_step in range(len(whole) + 1):
        sampler.set_epoch(4, first_step)
        assert len(sampler) == len(whole) - first_step
        assert sampler.steps_per_epoch == len(whole) > 3
        assert list(sampler) == whole[first_step:]
    with pytest.raises(ValueError, match=rf"first_step is {len(whole) + 1}, but epoch 4 has {len(whole)} steps"):
        sampler.set_epoch(4, len(whole) + 1)


def test_conflicting_places_never_share_a_step():
    banned = {frozenset((a, b)) for a, others in CONFLICTS.items() for b in others}

    def clashes(sampler):
        return sum(frozenset(pair) in banned for step in places_of(sampler) for pair in combinations(step, 2))

    careless, careful = (
        PlaceSampler(PLACES, places_per_batch=5, images_per_place=2, conflicts=conflicts)
        for conflicts in (None, CONFLICTS)
    )
    found, used = 0, set()
    for epoch in range(20):
        for sampler in (careless, careful):
            sampler.set_epoch(epoch)
        found += clashes(careless)
        assert clashes(careful) == 0
        steps = places_of(careful)
        used.update(chain.from_iterable(steps))
        assert len(steps) >= 2
        assert (careful.places_used, careful.steps_per_epoch) == (20, len(steps))
        assert len(set(chain.from_iterable(steps))) == 5 * len(steps)
    assert found > 50
    assert used == set(PLACES.tolist())


def test_places_of_a_clique_come_one_a_step():
    clique = set(PLACES[:10].tolist())
    sampler = PlaceSampler(PLACES, places_per_batch=4, images_per_place=1, conflicts=dict.fromkeys(clique, clique))
    steps = places_of(sampler)
    # 10 places outside of the clique, 3 of them in every step: 3 whole steps.
    assert [len(clique & set(step)) for step in steps] == [1] * len(steps)
    assert len(steps) == 3
    assert sampler.places_used - 4 * sampler.steps_per_epoch == 8


def test_places_with_few_images_are_dropped_and_counted():
    places = np.array([5] * 4 + [6] * 3 + [7] * 2 + [8] + [9] * 5)
    sampler = PlaceSampler(places, places_per_batch=2, images_per_place=3)
    assert (sampler.places_used, sampler.dropped_places, sampler.dropped_images) == (3, 2, 3)
    seen = set()
    for epoch in range(10):
        sampler.set_epoch(epoch)
        assert len(sampler) == 1
        seen.update(places_of(sampler, places)[0])
    assert seen == {5, 6, 9}
    with pytest.raises(
        ValueError,
        match=r"takes 2 places on each of 2 processes, but only 3 places can be used, and 2 have fewer than 3",
    ):
        PlaceSampler(places, places_per_batch=2, images_per_place=3, processes=2)


def test_wrong_numbers_are_named():
    for options, message in (
        ({"places_per_batch": 0}, "places_per_batch is 0, but must be at least 1"),
        ({"images_per_place": 0}, "images_per_place is 0"),
        ({"seed": -1}, "seed is -1, but must be at least 0"),
        ({"rank": 2, "processes": 2}, "rank is 2, but of 2 processes it must be 0 to 1"),
        ({"conflicts": {3: set(PLACES.tolist())}, "places_per_batch": 20}, "are free of conflicts"),
    ):
        with pytest.raises(ValueError, match=message):
            PlaceSampler(PLACES, **{"places_per_batch": 2, "images_per_place": 2, **options})
    with pytest.raises(ValueError, match="epoch is -1"):
        PlaceSampler(PLACES, places_per_batch=2, images_per_place=2).set_epoch(-1)


def test_an_epoch_of_the_size_of_gsv_cities_takes_about_a_second():
    random = np.random.default_rng(0)
    places = random.permutation(np.repeat(np.arange(62_000), random.integers(4, 14, 62_000)))
    conflicts = {place: range(place - place % 20, place - place % 20 + 20) for place in range(6_000)}
    sampler = PlaceSampler(places, places_per_batch=120, images_per_place=4, conflicts=conflicts)
    started = time.process_time()
    sampler.set_epoch(1)
    next(iter(sampler))
    # Its own time, whatever else runs; places compared with places would take many minutes.
    assert time.process_time() - started < 60
    assert sampler.places_used - 120 * sampler.steps_per_epoch < 120
    assert all(
        len({place // 20 for place in step if place < 6_000}) == sum(place < 6_000 for place in step)
        for step in places_of(sampler, places)
    )
