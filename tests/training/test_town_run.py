"""The whole way on drawn towns, in less than the tiny size."""

import json

import pytest
from transformers import AutoModel

from d2vpr_hf.training.run import RunFolder
from d2vpr_hf.training.town_run import TownSizes, train_on_town

SMALL = TownSizes(
    places_per_batch=4,
    teacher_places=5,
    student_places=4,
    validation_places=3,
    validation_queries=4,
    test_places=4,
    test_queries=8,
    teacher_epochs=1,
    distill_epochs=2,
    finetune_epochs=1,
)


def test_teacher_distilled_and_fine_tuned_student_are_measured_on_a_town_of_their_own(tmp_path):
    root = tmp_path / "run"
    run = train_on_town(root, seed=3, sizes=SMALL)
    assert list(run.evaluations) == ["random", "teacher", "distilled", "fine-tuned"]
    assert len({evaluation.weight_hash for evaluation in run.evaluations.values()}) == 4
    assert all(evaluation.counts["queries"] == 8 for evaluation in run.evaluations.values())
    assert len({str(evaluation.settings["image_size"]) for evaluation in run.evaluations.values()}) == 1
    assert AutoModel.from_pretrained(run.checkpoint).config.model_type == "d2vpr"
    stages = json.loads((run.checkpoint / "training.json").read_text())["stages"]
    assert [stage["stage"] for stage in stages] == ["distill", "finetune"]
    assert json.loads((root / "results.json").read_text())["recall"].keys() == run.evaluations.keys()
    assert len(RunFolder(root / "distill").records()) > 0
    towns = {path.name: {each.name for each in path.rglob("*.jpg")} for path in (root / "towns").iterdir()}
    assert towns.keys() == {"teacher", "student", "validation", "test"}
    assert len(towns["student"]) == 4 * 4
    assert not towns["teacher"] & towns["student"]
    table = run.table().text()
    assert "fine-tuned" in table
    assert "8 queries" in table
    with pytest.raises(FileExistsError, match="files that no training run wrote"):
        train_on_town(root, sizes=SMALL)
