"""Keys of a configuration: what they take, how stages and presets combine, and what is refused."""

import json
from pathlib import Path

import pytest
import yaml

from d2vpr_hf.training.arguments import (
    FREE_ON_RESUME,
    PRESETS,
    STAGES,
    DistillArguments,
    FinetuneArguments,
    resolve_arguments,
)
from d2vpr_hf.training.keys import documented_keys

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
RECIPES = {CONFIGS / "d2vpr_base.yaml", CONFIGS / "d2vpr_small.yaml"}  # of photos and stages
FINETUNE = {"stage": "finetune", "data": "photos", "model": "start"}
DISTILL = {"stage": "distill", "data": ["photos"], "model": "start", "teacher": "teacher"}


def test_text_becomes_what_a_key_holds():
    """YAML reads 1e-4 as text, and a command line gives nothing else."""
    found = resolve_arguments(
        FINETUNE
        | {"learning_rate": "1e-4", "epochs": "7", "resume": "true", "compile": False, "max_steps": "3", "beta": 40}
    )
    assert isinstance(found, FinetuneArguments)
    assert (found.learning_rate, found.epochs, found.resume, found.compile) == (1e-4, 7, True, False)
    assert (found.max_steps, found.beta, found.data, found.patience) == (3, 40.0, ["photos"], None)


def test_a_list_of_one_teacher_is_its_name():
    for given, kept in (("one", "one"), (["one"], "one"), (["one", "two"], ["one", "two"])):
        assert resolve_arguments(DISTILL | {"teacher": given}).teacher == kept
    assert resolve_arguments(FINETUNE | {"teacher": []}).teacher is None


def test_a_preset_gives_what_the_configuration_leaves_open():
    found = resolve_arguments(FINETUNE | {"preset": "published", "epochs": 5})
    assert (found.epochs, found.places_per_batch, found.warmup_epochs) == (5, 128, 3900)
    assert found.frozen_batchnorm == "train"
    assert resolve_arguments(FINETUNE).frozen_batchnorm == "eval"
    distill = resolve_arguments(DISTILL | {"preset": "published"})
    assert isinstance(distill, DistillArguments)
    assert (distill.optimizer, distill.learning_rate, distill.distillation_loss) == ("adam", 2.5e-5, "mse")
    assert (distill.places_per_batch, distill.images_per_place, distill.epochs) == (8, 4, 20)


def test_what_a_run_writes_down_makes_the_same_run():
    for values in (
        FINETUNE | {"preset": "published"},
        DISTILL | {"token_weight": 0.5, "model": None, "model_config": {}},
    ):
        found = resolve_arguments(values)
        assert resolve_arguments(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (FINETUNE | {"lerning_rate": 1}, "Did you mean learning_rate"),
        (DISTILL | {"alpha": 2}, "alpha, which is a key of another stage than distill"),
        (FINETUNE | {"stage": "pretrain"}, "one of distill, finetune"),
        (FINETUNE | {"preset": "fast"}, "default, published"),
        (FINETUNE | {"epochs": 1.5}, "epochs is 1.5, but expects an integer"),
        (FINETUNE | {"learning_rate": "fast"}, "learning_rate is 'fast', but expects a number"),
        (FINETUNE | {"learning_rate": "nan"}, "expects a number"),
        (FINETUNE | {"layer_rate_decay": 0}, "layer_rate_decay is 0.0, but must be above 0 and at most 1"),
        (FINETUNE | {"layer_rate_decay": 1.5}, "at most 1"),
        (FINETUNE | {"optimizer": "sgd"}, "adamw or adam"),
        (FINETUNE | {"mixed_precision": "fp8"}, "no, fp16 or bf16"),
        (FINETUNE | {"resume": "maybe"}, "true or false"),
        (FINETUNE | {"model": None}, "neither of model and model_config"),
        (
            FINETUNE | {"model": None, "model_config": {}, "recovery_start": "pass_through"},
            "recovery_start is pass_through",
        ),
        (FINETUNE | {"head_start": "whitened"}, "there is no new head"),
        (FINETUNE | {"head_dim": 8, "head_first_share": 0.9}, "head_first_share is 0.9 with head_start random"),
        (FINETUNE | {"model": None, "model_config": "nowhere.json"}, "nowhere.json isn't a file"),
        (FINETUNE | {"model": None, "model_config": "{1}"}, "isn't JSON"),
        (FINETUNE | {"images_per_place": 1}, "positive pair needs at least 2"),
        (FINETUNE | {"teacher": "one"}, "only with both"),
        (FINETUNE | {"distillation_weight": 1.0}, "only with both"),
        (FINETUNE | {"validation": ["msls"]}, "PROTOCOL=FOLDER"),
        (FINETUNE | {"patience": 2}, "patience needs a validation set"),
        (FINETUNE | {"image_size": 200}, "multiple of 14"),
        (FINETUNE | {"augmentation_magnitude": 31}, "0 to 30"),
        (DISTILL | {"teacher": None}, "teacher is missing"),
        (DISTILL | {"head_dim": 512}, "head_dim is for stage finetune"),
        (DISTILL | {"nested_dims": [512, 256]}, "nested_dims is for stage finetune"),
        (FINETUNE | {"nested_dims": [512]}, r"nested_dims is \[512\] with head_dim None, but must be at least two"),
        (FINETUNE | {"nested_dims": [512, 256], "head_dim": 256}, "of which head_dim is the largest"),
        (FINETUNE | {"nested_dims": [512, 0]}, "at least two numbers from 1"),
        (FINETUNE | {"nested_dims": ["512", "half"]}, "expects a list of integers"),
        (DISTILL | {"teacher_cache": "kept"}, "augmentation is randaugment"),
        (DISTILL | {"teacher_cache": "kept", "augmentation": "none", "token_weight": 1}, "no patch tokens"),
        (FINETUNE | {"descriptor_chunk": 0}, "at least 1 photo"),
        (FINETUNE | {"workers": -1}, "workers is -1"),
    ],
)
def test_what_does_not_fit_is_named(values, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        resolve_arguments(values, "mine.yaml")


def test_a_file_names_itself_in_errors():
    with pytest.raises(ValueError, match=r"mine\.yaml has the unknown key 'epoch'"):
        resolve_arguments(FINETUNE | {"epoch": 1}, "mine.yaml")


def test_every_key_is_documented_once():
    keys = documented_keys(STAGES)
    names = [key.name for key in keys]
    assert sorted(names) == sorted({name for kind in STAGES.values() for name in kind.names()})
    assert all(len(key.help) > 5 for key in keys)
    (places,) = [key for key in keys if key.name == "places_per_batch"]
    assert "distill 16, finetune 32" in places.help
    (alpha,) = [key for key in keys if key.name == "alpha"]
    assert alpha.help.endswith("[finetune]")


def test_presets_and_free_keys_name_keys_that_exist():
    for (stage, _), values in PRESETS.items():
        assert values.keys() <= set(STAGES[stage].names())
    assert set(FinetuneArguments.names()) >= FREE_ON_RESUME


@pytest.mark.parametrize("path", sorted({*CONFIGS.glob("*.yaml")} - RECIPES), ids=lambda path: path.stem)
def test_the_example_configurations_are_whole(path):
    found = resolve_arguments(yaml.safe_load(path.read_text()), path.name)
    assert found.stage == path.stem.split("_")[0]
    published = path.stem.endswith("published")
    assert found.learning_rate == {("distill", True): 2.5e-5, ("finetune", True): 2e-4}.get(
        (found.stage, published), 1e-4
    )
    if path.stem == "distill":
        assert found.teacher == "facebook/dinov2-base"


@pytest.mark.parametrize("dims", [[256, 512], ["512", "256"], (256, 512, 256)])
@pytest.mark.parametrize("head", [{}, {"head_dim": 512}])
def test_nested_dims_are_in_falling_order_and_their_largest_is_the_head(dims, head):
    found = resolve_arguments(FINETUNE | {"nested_dims": dims} | head)
    assert (found.head_dim, found.nested_dims) == (512, [512, 256])
    again = found.to_dict()
    assert resolve_arguments(again).to_dict() == again
