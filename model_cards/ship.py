"""Makes a trained checkpoint one that the package ships: src/d2vpr_hf/models/pretrained/NAME and model_cards/NAME.md.

    python model_cards/ship.py d2vpr-small CHECKPOINT --about about.json --sources sources.json \\
        --evaluation corridor/results.json --comparison corridor.json

The weights are rounded to float16. Evaluations must be of the rounded weights: run this once without any, evaluate with
`--model NAME`, and run it again with the results. Given the shipped folder itself, it writes that anew with its own
records, which a change of the card's text asks for. hub/records.py describes the JSON files; sources.json is what
model_cards/list_sources.py prints.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2vpr_hf import D2VprImageProcessor, D2VprModel, write_release
from d2vpr_hf.files import replace_file
from d2vpr_hf.models.checkpoint import ABOUT_FILE, TRAINING_FILE, round_to_float16
from d2vpr_hf.retrieval.embedder import weight_hash

ROOT = Path(__file__).parents[1]
# All of them together keep the wheel below 60 MB.
MOST_BYTES, MOST_PARAMETERS = 46_000_000, 23_000_000


def ship(
    name: str,
    checkpoint: Path,
    *,
    about: Path | None = None,
    sources: Sequence[Path] = (),
    evaluations: Sequence[Path] = (),
    comparisons: Sequence[Path] = (),
    training: Path | None = None,
    license: str | None = None,
    image_size: int | None = None,
    root: Path = ROOT,
) -> Path:
    """The shipped folder, written whole or not at all; its card lies in model_cards too.

    Args:
        name: of the checkpoint in the package, without a slash.
        checkpoint: folder of a trained D2-VPR model.
        about: what the card says besides figures; by default the checkpoint's own.
        sources: as list_sources.py prints them; they are added to those in `about`.
        evaluations, comparisons: of the rounded weights; by default the checkpoint's own, if rounding changes nothing.
        training: by default the checkpoint's own.
        license: of the weights, by its name on the Hub; by default Apache-2.0.
        image_size: pixels a side that photos are brought to; by default the checkpoint's own, which it was trained at.
        root: of the checkout.

    Raises: ValueError if the model is too large to be shipped, or as `write_release`.
    """
    model, processor = D2VprModel.from_pretrained(checkpoint).eval(), D2VprImageProcessor.from_pretrained(checkpoint)
    if image_size is not None:
        size = {"height": image_size, "width": image_size}
        processor = D2VprImageProcessor.from_dict(processor.to_dict() | {"size": size})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > MOST_PARAMETERS:
        raise ValueError(
            f"{checkpoint} has {parameters:,} parameters, but the package ships at most {MOST_PARAMETERS:,}. Train a "
            "smaller configuration."
        )
    round_to_float16(model)
    target, card = root / "src/d2vpr_hf/models/pretrained" / name, root / "model_cards" / f"{name}.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as work:
        draft = write_release(
            Path(work) / name,
            model,
            processor,
            name,
            evaluations=evaluations or None,
            comparisons=comparisons or None,
            training=training or _if_there(checkpoint / TRAINING_FILE),
            about=_about(about or _if_there(checkpoint / ABOUT_FILE), sources),
            license=license,
        )
        weights = draft / "model.safetensors"
        weights.chmod(0o644)
        if (size := weights.stat().st_size) > MOST_BYTES:
            raise ValueError(f"{weights.name} has {size:,} bytes, but the package ships at most {MOST_BYTES:,}.")
        text = (draft / "README.md").read_text(encoding="utf-8")
        (draft / "README.md").unlink()
        # The records that the card links to stay with the checkpoint.
        there = f"../{target.relative_to(root).as_posix()}"
        replace_file(card, re.sub(r"\]\((evaluations|comparisons)/", rf"]({there}/\1/", text))
        _take_code_out(draft)
        if target.exists():
            target.rename(Path(work) / "before")
        draft.rename(target)
    print(f"{target}: weights {weight_hash(model)[:8]}, {parameters:,} parameters, {size:,} bytes; {card}")
    return target


def _take_code_out(folder: Path) -> None:
    """The package has the code itself; `save_pretrained` writes it beside a checkpoint that leaves the package."""
    for path in [*folder.glob("*.py"), folder / "modules.json", folder / "config_sentence_transformers.json"]:
        path.unlink()
    for name in ("config.json", "preprocessor_config.json"):
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        del settings["auto_map"]
        (folder / name).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None


def _about(path: Path | None, sources: Sequence[Path]) -> dict[str, Any] | None:
    """What is said of a checkpoint, with the sources of its data added."""
    about: dict[str, Any] = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    for each in sources:
        for field, entries in json.loads(each.read_text(encoding="utf-8")).items():
            about[field] = [*about.get(field, []), *entries]
    return about or None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the checkpoint in the package, such as d2vpr-small")
    parser.add_argument("checkpoint", type=Path, help="folder of the trained model")
    parser.add_argument("--about", type=Path, help="JSON: what it is not, data, credits, teacher, how to train it")
    parser.add_argument("--sources", type=Path, nargs="+", default=[], help="JSON of list_sources.py, added to that")
    parser.add_argument("--evaluation", type=Path, nargs="+", default=[], help="results.json of `d2vpr evaluate`")
    parser.add_argument("--comparison", type=Path, nargs="+", default=[], help="tables of several methods")
    parser.add_argument("--training", type=Path, help="training.json (default: the checkpoint's)")
    parser.add_argument("--license", help="of the weights, by its name on the Hub (default: apache-2.0)")
    parser.add_argument("--image-size", type=int, metavar="PX", help="pixels a side (default: the checkpoint's)")
    options = parser.parse_args()
    ship(
        options.name,
        options.checkpoint,
        about=options.about,
        sources=options.sources,
        evaluations=options.evaluation,
        comparisons=options.comparison,
        training=options.training,
        license=options.license,
        image_size=options.image_size,
    )


if __name__ == "__main__":
    main()
