from itertools import pairwise

import pytest
from made_training import arguments

from d2vpr_hf.training.schedule import Schedule


def schedule(batches: int, **keys) -> Schedule:
    return Schedule.of(arguments("town", "out", **keys), batches)


def test_the_published_warm_up_ends_where_it_ended():
    """LR 2e-4 * (step + 1) / (3900 * N) over 120 epochs of N steps: 2e-4 * 120 / 3900 = 6.15e-6."""
    found = schedule(484, preset="published", epochs=120, learning_rate=2e-4)
    assert found.steps == 120 * 484
    assert found.learning_rate(0) == pytest.approx(2e-4 / (3900 * 484))
    assert found.learning_rate(found.steps - 1) == pytest.approx(6.1538e-6, rel=1e-4)


def test_the_default_rises_and_falls():
    found = schedule(100, epochs=4, warmup_epochs=0.5, learning_rate=1.0)
    rates = [found.learning_rate(step) for step in range(400)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == rates[49] == rates[50] == 1.0
    assert rates[225] == pytest.approx(0.505)  # half of the way down to a hundredth
    assert 0.01 < rates[-1] < 0.011
    assert all(before > after for before, after in pairwise(rates[50:]))


def test_steps_are_counted_in_accumulated_batches():
    assert schedule(10, epochs=2, gradient_accumulation_steps=4).steps == 4
    assert schedule(10, epochs=2, gradient_accumulation_steps=4, max_steps=3).steps == 3
    with pytest.raises(ValueError, match="gradient_accumulation_steps is 4"):
        schedule(3, gradient_accumulation_steps=4)


def test_a_constant_rate_stays():
    found = schedule(10, schedule="constant", warmup_epochs=0, learning_rate=0.5)
    assert {found.learning_rate(step) for step in range(20)} == {0.5}
