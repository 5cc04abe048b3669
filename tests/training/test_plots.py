import numpy as np
from PIL import Image

from d2vpr_hf.training.plots import draw_plots


def picture(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_loss_and_recall_are_drawn(tmp_path):
    steps = [{"step": step, "loss": 1 / step, "mined_share": 0.5, "learning_rate": 1e-4} for step in range(1, 9)]
    validations = [{"step": 4, "validation": {"folders": {"recall@1": 0.5, "recall@5": 0.75}}, "best": True}]
    (tmp_path / "first").mkdir()
    (tmp_path / "other").mkdir()
    drawn = draw_plots(steps + validations, tmp_path / "first")
    assert [path.name for path in drawn] == ["loss.png", "recall.png"]
    other = draw_plots([{**record, "loss": 1 - record["step"] / 9} for record in steps], tmp_path / "other")
    assert [path.name for path in other] == ["loss.png"]
    first, changed = picture(drawn[0]), picture(other[0])
    assert first.std() > 5
    assert first.shape == changed.shape
    assert (first != changed).any()
    assert draw_plots([], tmp_path) == []
