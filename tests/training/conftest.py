"""Towns for the trainer's tests, drawn once."""

from pathlib import Path

import pytest
from made_training import draw_training_town, draw_validation_town


@pytest.fixture(scope="session")
def training_town(tmp_path_factory) -> Path:
    return draw_training_town(tmp_path_factory.mktemp("training") / "town")


@pytest.fixture(scope="session")
def validation_town(tmp_path_factory) -> Path:
    return draw_validation_town(tmp_path_factory.mktemp("validation") / "town")
