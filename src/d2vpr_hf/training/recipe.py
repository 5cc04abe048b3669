"""A whole training in one configuration: photos that are made, then stages, each of which goes on from the one before.

    output: runs/mine                # photos go to runs/mine/data, stages to runs/mine/1-distill, ...
    photos:
      views: {panoramas: data/panoramas, sectors: 12, views_per_sector: 12}
      facades: {photos: data/facades, views_per_photo: 8}
      town: {town_seeds: [5, 6], places: 160, views: 8}
    mixed_precision: bf16            # any key of the trainer: for all stages
    stages:
      - {stage: distill, data: [views, town-5], ...}
      - {stage: finetune, data: [views, town-5, town-6], ...}

In `data` and `validation` the name of what is made stands for its folder. A town's folder is its name and its seed.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..panoramas.photo_views import cut_photo_views
from ..panoramas.training_views import cut_training_views
from ..town.make import make_town
from .arguments import STAGES, TrainingArguments, resolve_arguments
from .keys import refuse_unknown
from .launching import threads_each, threads_set
from .run import RunFolder
from .trainer import TrainingResult, train

logger = logging.getLogger(__name__)

OWN_KEYS = ("photos", "stages")
# A town of the same seed is drawn anew each time; this says that it is whole.
FINISHED = ".finished"


@dataclass(frozen=True)
class MadePhotos:
    """One folder of photos that a recipe makes.

    Attributes:
        folder: where it goes.
        keys: of `make_town`, or of what cuts the views.
        cut: cuts views out of images, `cut_training_views` or `cut_photo_views`; None for a town.
        images: the folder that it cuts them from.
    """

    folder: Path
    keys: dict[str, Any]
    cut: Callable[..., Path] | None = None
    images: str = ""

    def make(self) -> None:
        """Makes what isn't there yet."""
        if self.cut is not None:
            self.cut(self.images, self.folder, **self.keys)
        elif not (self.folder / FINISHED).is_file():
            make_town(self.folder, progress=True, **self.keys)
            (self.folder / FINISHED).touch()


# What cuts training places out of a folder of images, by the key that names the folder.
CUTTERS: dict[str, Callable[..., Path]] = {"panoramas": cut_training_views, "photos": cut_photo_views}


@dataclass(frozen=True)
class Recipe:
    """What a configuration with `stages` asks for, checked before anything is made.

    Attributes:
        photos: by the names that stand for their folders.
        stages: arguments of each; every stage but the first starts from the checkpoint of the one before, unless it
            names a model.
    """

    photos: dict[str, MadePhotos]
    stages: list[TrainingArguments]

    @classmethod
    def read(cls, values: Mapping[str, Any], given: Mapping[str, Any], origin: str) -> "Recipe":
        """The recipe of a configuration.

        Args:
            values: of the file.
            given: keys of the command line, which win in all stages.
            origin: names the file in errors.

        Raises: ValueError for an unknown key, or values that don't fit.
        """
        every_key = list(dict.fromkeys(name for kind in STAGES.values() for name in kind.names()))
        common = {name: value for name, value in values.items() if name not in OWN_KEYS}
        refuse_unknown(common, every_key, origin)
        output = Path(str(given.get("output", common.get("output", "runs/train"))))
        photos = dict(_read_photos(values.get("photos") or {}, output / "data", origin))
        stages: list[TrainingArguments] = []
        for number, own in enumerate(values["stages"], 1):
            keys = common | dict(own) | dict(given)
            kind = STAGES.get(keys.get("stage"))
            foreign = set() if kind is None else set(every_key) - set(kind.names()) - own.keys()
            keys = {name: value for name, value in keys.items() if name not in foreign}
            keys["output"] = str(output / f"{number}-{keys.get('stage')}")
            if stages and not {"model", "model_config"} & keys.keys():
                keys["model"] = str(RunFolder(stages[-1].output).checkpoint)
            for name in ("data", "validation"):
                keys[name] = [_with_folder(entry, photos) for entry in keys.get(name) or []]
            keys["resume"] = False
            stages.append(resolve_arguments(keys, f"{origin}, stage {number}"))
        if not stages:
            raise ValueError(f"{origin} has no stages. List at least one: 'stages: [{{stage: finetune, ...}}]'.")
        return cls(photos, stages)

    def run(self, *, resume: bool = False) -> TrainingResult:
        """Makes the photos, runs the stages, and returns what the last one made.

        Args:
            resume: leave finished stages as they are, and go on with the one that was broken off.

        Raises: as `train`.
        """
        state = PartialState()
        if state.is_main_process:
            with threads_set(threads_each(1)):  # the other processes wait
                for made in self.photos.values():
                    made.make()
        state.wait_for_everyone()
        for number, arguments in enumerate(self.stages, 1):
            folder = RunFolder(arguments.output)
            if resume and folder.is_finished and number < len(self.stages):
                logger.info("Stage %d of %d is finished: %s", number, len(self.stages), folder.checkpoint)
                continue
            logger.info("Stage %d of %d: %s", number, len(self.stages), arguments.stage)
            arguments.resume = resume and bool(folder.states())
            result = train(arguments)
            state.wait_for_everyone()
        return result


def _read_photos(photos: Any, folder: Path, origin: str) -> Iterator[tuple[str, MadePhotos]]:
    if not isinstance(photos, Mapping) or not all(isinstance(keys, Mapping) for keys in photos.values()):
        raise ValueError(f"photos in {origin} must be a mapping: the name of a folder, and how its photos are made.")
    for name, asked in photos.items():
        keys = dict(asked)
        where = f"photos.{name} of {origin}"
        if len(sources := {*CUTTERS, "town_seeds"} & keys.keys()) != 1:
            raise ValueError(
                f"{where} must have either panoramas (a folder of 360-degree panoramas, of which views are cut), "
                "photos (a folder of photos of facades, which are seen from elsewhere) or town_seeds (a list of "
                f"integers, for each of which a town is drawn); it has {', '.join(keys)}."
            )
        source = sources.pop()
        found, maker = keys.pop(source), CUTTERS.get(source, make_town)
        _refuse_foreign(keys, maker, where)
        if source in CUTTERS:
            yield name, MadePhotos(folder / name, keys, maker, str(found))
        else:
            for seed in found:
                yield f"{name}-{seed}", MadePhotos(folder / f"{name}-{seed}", keys | {"seed": seed})


def _refuse_foreign(keys: Mapping[str, Any], maker: Any, origin: str) -> None:
    known = [name for name in inspect.signature(maker).parameters if name not in ("folder", "out", "progress")]
    refuse_unknown(keys, known, origin, f"the documentation of {maker.__name__}")


def _with_folder(entry: str, photos: Mapping[str, MadePhotos]) -> str:
    """A folder, or PROTOCOL=FOLDER, with the folder of what is made in place of its name."""
    protocol, equals, name = entry.rpartition("=")
    return f"{protocol}{equals}{photos[name].folder if name in photos else name}"
