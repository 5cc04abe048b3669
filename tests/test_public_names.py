"""The names that `import d2vpr_hf` promises, and that each stays with its one table."""

import pytest

import d2vpr_hf


def test_every_public_name_is_there_and_listed():
    assert 20 < len(d2vpr_hf.__all__) < 30
    assert dir(d2vpr_hf) == sorted(d2vpr_hf.__all__)
    for name in d2vpr_hf.__all__:
        found = getattr(d2vpr_hf, name)
        assert found.__name__ == name
        assert found.__doc__


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"d2vpr_hf has no 'embed'; it has .*embed_images"):
        _ = d2vpr_hf.embed
