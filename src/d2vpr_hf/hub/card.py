"""The model card, a repository's first page: made of the records that lie in the repository, and of nothing else."""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.configuration_utils import PreTrainedConfig

from ..messages import percent
from ..models.checkpoint import TRAINING_FILE
from .records import COMPARISONS_FOLDER, EVALUATIONS_FOLDER

_TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ("visual-place-recognition", "d2vpr")
TASK = "image-feature-extraction"
# Cut-offs that the table shows, where an evaluation has them; the card's head has all.
SHOWN = ("recall@1", "recall@5", "recall@10")
# Of fewer queries a share would say more than is known: hits alone are shown.
FEW_QUERIES = 10
ORIGINAL_REPOSITORY = "https://github.com/tony19980810/D2VPR"
# What a stage of training.json may say, in the order in which the card shows it, and what is folded up there.
_STAGE_FACTS = ("base_model", "teacher", "datasets", "data", "step", "images", "processes", "best")
_STAGE_SETTINGS = ("arguments", "versions")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Longer lists, such as a curve, are left to the file.
_LONGEST_LIST = 12


def model_card(
    repo_id: str,
    config: PreTrainedConfig,
    *,
    cost: Mapping[str, int | float],
    evaluations: Mapping[str, Mapping[str, Any]],
    comparisons: Mapping[str, Mapping[str, Any]] | None = None,
    training: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    license: str | None = None,
    revision: str | None = None,
    notes: Sequence[str] = (),
) -> ModelCard:
    """The card of a model, whose every figure stands in one of the records.

    Args:
        repo_id: "owner/name"; a name alone is that of a checkpoint which comes with the package.
        config: of the model.
        cost: as `ModelCost.to_json` gives it.
        evaluations: {file name: evaluation}, as `records.read_evaluations` gives them.
        comparisons: {file name: comparison}, as `records.read_comparisons` gives them.
        training: as `records.read_training` gives it; None where nothing is recorded.
        about: as `records.read_about` gives it; None where nothing is said.
        license: of the weights, by its name on the Hub; None where none is stated.
        revision: the branch that the card is for; None for main.
        notes: sentences that must be read first, such as that weights are random.
    """
    stages = [] if training is None else list(training["stages"])
    name = repo_id.partition("/")[2] or repo_id
    results = [each for evaluation in evaluations.values() for each in eval_results(evaluation, config)]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=TASK,
        tags=list(TAGS),
        **({"model_name": name, "eval_results": results} if results else {}),
        base_model=_base_models(stages) or None,
        # What stages call the folders of their photos, `data`, means nothing on the Hub.
        datasets=_united(stages, "datasets") or None,
        **_license_data(license, config),
    )
    pca = config.pca_source
    return ModelCard.from_template(
        data,
        template_path=str(_TEMPLATE),
        name=name,
        shipped="/" not in repo_id,
        address=f'"{repo_id}"' + (f', revision="{revision}"' if revision else ""),
        dim=f"{config.descriptor_dim:,}",
        plain_dim=config.descriptor_dim,
        head_dim=f"{head_dim:,}" if (head_dim := getattr(config, "head_dim", None)) else None,
        nested_dims=[f"{dim:,}" for dim in getattr(config, "nested_dims", None) or ()],
        unit_length=pca is None or pca["renormalise"],
        cross_image=config.cross_image_encoder,
        notes=[_line(note) for note in notes],
        cutoffs=_cutoffs(evaluations),
        results=[_result(name, evaluation, _cutoffs(evaluations), stages) for name, evaluation in evaluations.items()],
        has_hits=any(each.get("hits") for each in evaluations.values()),
        comparisons=[_comparison(name, each) for name, each in (comparisons or {}).items()],
        about=about or {},
        line=_line,
        cell=_cell,
        code=_code,
        cost={field: f"{value:.3g}" if field == "gmacs" else f"{value:,}" for field, value in cost.items()},
        converted=config.converted_from,
        stages=[
            {
                "name": _line(stage["stage"]),
                "facts": _stage_rows(stage, _STAGE_FACTS),
                "settings": _stage_rows(stage, _STAGE_SETTINGS),
            }
            for stage in stages
        ],
        pca=None
        if pca is None
        else pca | {"images": f"{pca['images']:,}", "variance_kept": _percent(pca["variance_kept"])},
        license=license,
    )


def eval_results(evaluation: Mapping[str, Any], config: PreTrainedConfig) -> list[EvalResult]:
    """Every recall of an evaluation for a card's head, as an unrounded fraction."""
    counts = evaluation["counts"]
    size = f"{counts['database']:,} database photos, {counts['queries']:,} queries"
    return [
        EvalResult(
            task_type=TASK,
            task_name="Visual place recognition",
            dataset_type=evaluation["protocol"],
            dataset_name=f"{evaluation['protocol']} ({size})",
            dataset_config=f"{size}; positives: {_line(evaluation['rule'])}",
            dataset_args={**counts, "queries_without_positives": evaluation["queries_without_positives"]},
            metric_type="recall_at_k",
            metric_name=metric,
            metric_value=value,
            metric_args={"k": int(metric.partition("@")[2]), "denominator": evaluation.get("denominator", "all")},
            metric_config=_conditions(evaluation, config),
        )
        for metric, value in evaluation["recall"].items()
    ]


def _image_size(settings: Mapping[str, Any]) -> str:
    """The size that photos were brought to, in words; nothing where it isn't recorded."""
    size = settings.get("image_size") or {}
    return f"{size['height']} x {size['width']} pixels" if {"height", "width"} <= size.keys() else ""


def _conditions(evaluation: Mapping[str, Any], config: PreTrainedConfig) -> str:
    """What a recall depends on besides model and photos."""
    settings, pca = evaluation["settings"], config.pca_source
    parts = [
        f"batches: {settings['batch_rule']}",
        "no PCA"
        if pca is None
        else f"PCA to {config.descriptor_dim} numbers, fitted on {pca['images']} photos of {pca['name']}",
        f"queries by {settings['query_method']}",
        _image_size(settings),
        settings["dtype"],
    ]
    return "; ".join(filter(None, parts))


def _result(
    file: str, evaluation: Mapping[str, Any], cutoffs: Sequence[str], stages: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A row of the card's table, and what must be known to judge it."""
    counts, recall = evaluation["counts"], evaluation["recall"]
    first = next(iter(recall))
    remarks = [f"Positives: {_line(evaluation['rule'])}."]
    chosen_by = [str((stage.get("best") or {}).get("validation", "")).partition("=")[0] for stage in stages]
    if evaluation["protocol"] in chosen_by:
        remarks.append(
            "The weights were chosen by their recall in validation under this protocol: on the same set, this figure "
            "flatters them."
        )
    if interval := (evaluation.get("recall_intervals") or {}).get(first):
        level = evaluation["recall_intervals"]["level"]
        remarks.append(
            f"{_percent(level, 0)} % interval of {first}: {_percent(interval[0])} to {_percent(interval[1])}."
        )
    if without := evaluation["queries_without_positives"]:
        treated = "count as misses" if evaluation.get("denominator", "all") == "all" else "are left out"
        remarks.append(f"{without:,} queries without positives {treated}.")
    unread = {split: counts[split] - counts[f"{split}_ranked"] for split in ("database", "queries")}
    remarks += [f"{count:,} photos of the {split} could not be read." for split, count in unread.items() if count]
    settings = evaluation["settings"]
    pixels = f" at {size}" if (size := _image_size(settings)) else ""
    remarks.append(
        _line(f"Queries by {settings['query_method']}{pixels}, {settings['dtype']}; batches: {settings['batch_rule']}.")
    )
    remarks += [_line(note) for note in evaluation.get("notes") or ()]
    return {
        "protocol": _cell(evaluation["protocol"]),
        "file": f"{EVALUATIONS_FOLDER}/{file}",
        "database": f"{counts['database']:,}",
        "queries": f"{counts['queries']:,}",
        "recall": [_share(recall, evaluation.get("hits") or {}, each) for each in cutoffs],
        "remarks": remarks,
    }


def _share(recall: Mapping[str, float], hits: Mapping[str, int], metric: str) -> str:
    """A recall in percent, with the number of its hits where that is recorded; empty without that recall."""
    if metric not in recall:
        return ""
    found = hits.get(metric.replace("recall", "hits"))
    return _percent(recall[metric]) + ("" if found is None else f" ({found:,})")


def _comparison(file: str, comparison: Mapping[str, Any]) -> dict[str, Any]:
    """A table of several methods on one set: what each reaches, and how far the model is from it."""
    rows = comparison["rows"]
    counts = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in comparison["counts"].items())
    columns = {
        "method": [_cell(row["method"]) for row in rows],
        _cell(comparison["measure"]): [
            "" if (row.get("of") or FEW_QUERIES) < FEW_QUERIES else _percent(row["value"]) for row in rows
        ],
        "hits": [f"{row['hits']:,} of {row['of']:,}" if {"hits", "of"} <= row.keys() else "" for row in rows],
        "interval": [_range(row.get("interval")) for row in rows],
        "model minus it (interval)": [
            f"{100 * row['difference']:+.1f} ({_range(row.get('difference_interval'), '+')})"
            if row.get("difference") is not None
            else ""
            for row in rows
        ],
        "source": [_cell(row.get("source") or "") for row in rows],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    remarks = [f"{_line(counts)}.", f"Positives: {_line(comparison['rule'])}."]
    remarks += [_line(remark) for remark in comparison.get("remarks") or ()]
    if command := comparison.get("command"):
        remarks.append(f"Measured by {_code(command)}.")
    return {
        "name": _cell(comparison["name"]),
        "file": f"{COMPARISONS_FOLDER}/{file}",
        "header": list(shown),
        "rows": list(zip(*shown.values(), strict=True)),
        "remarks": remarks,
    }


def _range(interval: Sequence[float] | None, sign: str = "") -> str:
    return "" if interval is None else " to ".join(f"{100 * each:{sign}.1f}" for each in interval)


def _cutoffs(evaluations: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The columns of the table: the usual cut-offs, or those that there are."""
    there = list(dict.fromkeys(metric for each in evaluations.values() for metric in each["recall"]))
    return [metric for metric in SHOWN if metric in there] or there[: len(SHOWN)]


def _stage_rows(stage: Mapping[str, Any], fields: Sequence[str]) -> list[tuple[str, str]]:
    return [(_cell(name), _cell(value)) for field in fields for name, value in _flat(field, stage.get(field))]


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """(name, text) of every setting within a JSON value; a field that says nothing gives none."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(f"{name}.{key}", each)
    elif isinstance(value, list | tuple):
        plain = not any(isinstance(each, Mapping | list | tuple) for each in value)
        short = plain and len(value) <= _LONGEST_LIST
        if value:
            yield name, ", ".join(map(_text, value)) if short else f"see {TRAINING_FILE}"
    elif value is not None and value != "":
        yield name, _text(value)


def _text(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _base_models(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """What training began with, as far as it lies on the Hub: a folder of this machine means nothing there.

    Later stages begin with what the one before them left.
    """
    names = _united(stages[:1], "base_model")
    return [name for name in names if _HUB_ID.fullmatch(name) and not Path(name).exists()]


def _united(stages: Sequence[Mapping[str, Any]], field: str) -> list[str]:
    """The names in a field of all stages, each once."""
    values = [stage.get(field) or () for stage in stages]
    return list(dict.fromkeys(name for value in values for name in ([value] if isinstance(value, str) else value)))


def _license_data(license: str | None, config: PreTrainedConfig) -> dict[str, str]:
    if license is not None:
        return {"license": license}
    if config.converted_from is None:
        return {}
    return {"license": "other", "license_name": "none-stated", "license_link": ORIGINAL_REPOSITORY}


def _percent(share: float, digits: int = 1) -> str:
    """In percent, without the sign, for a column or a sentence that has it."""
    return percent(share, digits).removesuffix(" %")


def _line(text: Any) -> str:
    """Text on one line, so that it can't begin a list or a heading, in which HTML is no more than text."""
    return html.escape(" ".join(str(text).split()), quote=False)


def _cell(text: Any) -> str:
    return _line(text).replace("|", "\\|")


def _code(text: Any) -> str:
    """A name or a command as a code span, which the text can't end."""
    return "`" + " ".join(str(text).split()).replace("`", "'") + "`"
