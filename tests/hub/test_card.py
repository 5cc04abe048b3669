"""A card says what its records say: every figure, and nothing that isn't there."""

import dataclasses
import re
import tomllib
from pathlib import Path

from huggingface_hub import ModelCard, metadata_load
from loopback_hub import card_problems
from made_evaluation import made_evaluation

from d2vpr_hf import D2VprConfig, D2VprImageProcessor, D2VprModel, write_release
from d2vpr_hf.evaluation.compare import Comparison
from d2vpr_hf.hub import card as card_module
from d2vpr_hf.hub import push
from d2vpr_hf.hub.card import model_card
from d2vpr_hf.hub.records import read_about, read_comparisons, read_evaluations, read_training
from d2vpr_hf.hub.release import recorded_results
from d2vpr_hf.retrieval.embedder import weight_hash

ROOT = Path(__file__).parents[2]
COST = {
    "parameters": 27_211_621,
    "gmacs": 7.04812,
    "height": 224,
    "width": 280,
    "descriptor_dim": 10_752,
    "descriptor_bytes": 43_008,
    "weight_bytes": 108_870_036,
}
TRAINING = {
    "stages": [
        {
            "stage": "distill",
            "base_model": "facebook/dinov2-small",
            "datasets": ["GSV-Cities"],
            "teacher": {"name": "/runs/cricavpr", "weight_hash": "c" * 64},
            "arguments": {"epochs": 20, "learning_rate": 2.5e-05, "loss": {"name": "mse", "margin": 0.37}, "amp": True},
            "best": {"recall@1": 0.625, "step": 340, "curve": list(range(100))},
            "versions": {"torch": "2.13.0"},
        },
        {
            "stage": "finetune",
            "base_model": "runs/distill",
            "datasets": ["GSV-Cities", "A|B"],
            "step": 1234,
            "best": None,
        },
    ]
}
COMPARISON = {
    "name": "corridor",
    "measure": "recall@1",
    "rule": "within 4 frames",
    "counts": {"database": 111, "queries": 111},
    "model": {"name": "d2vpr-small", "weight_hash": "a" * 64},
    "command": "d2vpr evaluate",
    "remarks": ["One remark."],
    "rows": [
        {"method": "d2vpr-small", "value": 78 / 111, "hits": 78, "of": 111, "interval": [0.6126, 0.7838]},
        {
            "method": "grey|thumbnail",
            "value": 30 / 111,
            "hits": 30,
            "of": 111,
            "difference": 48 / 111,
            "difference_interval": [0.3333, 0.5321],
        },
        {"method": "NetVLAD", "value": 0.676, "source": "published"},
    ],
}
ABOUT = {
    "not_this": ["It is not\nthe published one."],
    "data_sources": [
        {
            "name": "a/b",
            "terms": "CC-BY-4.0",
            "files": 1234,
            "files_sha256": "e" * 64,
            "url": "https://example.org/a",
            "use": "training",
        },
        {"name": "drawn towns", "terms": "none"},
    ],
    "credits": ["Somebody, CC-BY-4.0: a.jpg"],
    "teacher": {"name": "MobileNetV2", "terms": "Apache-2.0"},
    "retrain": {"command": "accelerate launch train.py", "seeds": [0, 1], "commit": "abc", "steps": ["Then wait."]},
}
PCA = {
    "name": "pitts30k/images/train",
    "images": 16384,
    "files_sha256": "d" * 64,
    "seed": 7,
    "renormalise": False,
    "variance_kept": 0.91234,
}


def evaluations(*others, **settings):
    return read_evaluations([made_evaluation(**settings), *others], "a" * 64)


def card_of(config=None, results=None, **options):
    options = {"cost": COST, "evaluations": evaluations() if results is None else results} | options
    return model_card("me/d2vpr-town", D2VprConfig() if config is None else config, **options)


def numbers_of(text):
    """Every number of a text, as (value, digits after its point)."""
    found = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w])", text)
    return [(float(each.replace(",", "")), len(each.partition(".")[2])) for each in found if each.strip(",")]


def values_of(record):
    """Every number that stands in a JSON value, those within its texts and names too."""
    if isinstance(record, dict):
        return [value for name, each in record.items() for value in [*values_of(name), *values_of(each)]]
    if isinstance(record, list | tuple):
        return [value for each in record for value in values_of(each)]
    if isinstance(record, str):
        return [value for value, _ in numbers_of(record)]
    return [] if record is None or isinstance(record, bool) else [float(record)]


def test_every_figure_of_the_card_is_in_the_records():
    results = evaluations(made_evaluation([[0, 1, 2, 3, 4]] * 4, query_method="five_crops"))
    training = read_training(TRAINING)
    config = D2VprConfig(descriptor_dim=512, pca_source=PCA)
    card = card_of(config, results, training=training)
    there = values_of([COST, results, training, config.to_dict()])
    shown = [part for name in ("Results", "Size and cost", "How it was made") for part in [section(card, name)]]
    figures = [each for part in shown for each in numbers_of(re.sub(r"recall@k|\]\([^)]*\)|\*\*Stage \d", "", part))]
    assert len(figures) > 40
    for value, digits in figures:
        # As it stands, or in percent as the card rounds it.
        forms = (value == each or round(100 * each, digits) == value or float(f"{each:.3g}") == value for each in there)
        assert any(forms), value
    head = card.data.to_dict()["model-index"]
    for result in head[0]["results"]:
        for metric in result["metrics"]:
            assert metric["value"] in [each["recall"][metric["name"]] for each in results.values()]
    # A figure that isn't there would be found.
    assert not any(round(100 * each, 1) == 61.7 for each in there)


def section(card, name):
    return re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", card.text, re.DOTALL | re.MULTILINE)[1]


def test_the_head_says_what_the_hub_searches_by(tmp_path):
    card = card_of(results=evaluations(made_evaluation(name="again", batch_rule="in batches of 8")), training=TRAINING)
    card.save(tmp_path / "README.md")
    head = metadata_load(tmp_path / "README.md")
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "image-feature-extraction"
    assert head["tags"] == ["visual-place-recognition", "d2vpr"]
    # The second stage began with the first one's folder, which is nothing on the Hub.
    assert head["base_model"] == ["facebook/dinov2-small"]
    assert head["datasets"] == ["GSV-Cities", "A|B"]
    (model,) = head["model-index"]
    assert model["name"] == "d2vpr-town"
    (result,) = model["results"]
    assert result["dataset"]["type"] == "made"
    assert result["dataset"]["name"] == "made (6 database photos, 4 queries)"
    assert result["dataset"]["args"]["queries_without_positives"] == 0
    assert [(metric["name"], metric["value"], metric["args"]["k"]) for metric in result["metrics"]][:3] == [
        ("recall@1", 0.5, 1),
        ("recall@3", 0.75, 3),
        ("recall@5", 0.75, 5),
    ]
    rules = {metric["config"].split(";")[0] for metric in result["metrics"]}
    assert rules == {"batches: each photo by itself: the batch size changes nothing", "batches: in batches of 8"}
    assert all("no PCA" in metric["config"] for metric in result["metrics"])
    assert card_problems((tmp_path / "README.md").read_text()) == []
    again = ModelCard.load(tmp_path / "README.md")
    assert [each.metric_value for each in again.data.eval_results] == [0.5, 0.75, 0.75] * 2


def test_what_is_not_recorded_is_not_there(tmp_path):
    card = card_of(results={})
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert "No evaluation came with this model." in section(card, "Results")
    assert "Nothing is recorded about how these weights came about." in section(card, "How it was made")
    assert "no licence is stated" in section(card, "Licence")
    assert "Stage" not in card.text
    assert "PCA" not in card.text
    assert "None" not in card.text
    assert "{" not in re.sub(r"```bibtex.*?```", "", card.text, flags=re.DOTALL)


def test_a_pca_names_its_source_in_text_and_head():
    card = card_of(D2VprConfig(descriptor_dim=512, pca_source=PCA))
    made = section(card, "How it was made")
    assert "a PCA to 512 numbers, not brought to length 1 again" in made
    assert "16,384 photos of pitts30k/images/train (seed 7) and keeps 91.2 % of the variance" in made
    assert "hitening" not in made
    assert "are compared by their distance" in card.text
    whitened = section(card_of(D2VprConfig(descriptor_dim=512, pca_source=PCA | {"whitening": 0.5})), "How it was made")
    assert "Its whitening is 0.5: each number was divided by its variance to the power whitening/2." in whitened
    (result,) = card.data.to_dict()["model-index"][0]["results"]
    assert "PCA to 512 numbers, fitted on 16384 photos of pitts30k/images/train" in result["metrics"][0]["config"]
    unknown = card_of(D2VprConfig(descriptor_dim=512, pca_source=PCA | {"files_sha256": None, "renormalise": True}))
    assert "nobody can tell whether a test photo was among them" in section(unknown, "How it was made")
    assert "Descriptors have length 1" in unknown.text


def test_a_converted_model_says_whose_it_is():
    source = {"file": "original.pth", "sha256": "e" * 64}
    card = card_of(D2VprConfig(converted_from=source, cross_image_encoder=True), training=TRAINING)
    made = section(card, "How it was made")
    assert f"published checkpoint `original.pth` (SHA-256 `{'e' * 64}`)" in made
    assert made.index("original.pth") < made.index("**Stage 1: distill**")
    assert "the rights in them are with their authors" in section(card, "Licence")
    assert card.data.license == "other"
    assert card.data.license_name == "none-stated"
    assert "The cross-image encoder is on." in card.text
    assert "recall depends on the size and the order of the batches" in section(card, "Limits")
    assert card_problems(str(card)) == []
    headed = card_of(D2VprConfig(head_dim=512))
    assert "a learned projection to 512 numbers" in section(headed, "How it was made")
    nested = section(card_of(D2VprConfig(head_dim=512, nested_dims=(512, 256), descriptor_dim=256)), "How it was made")
    assert "chooses N among 512 and 256; this checkpoint gives 256 if nothing is chosen" in nested
    assert "descriptor_dim=N" not in headed.text
    plain = card_of(license="mit")
    assert plain.data.license == "mit"
    assert "The weights: mit," in section(plain, "Licence")
    assert "cross-image" not in plain.text


def test_a_figure_of_the_protocol_that_chose_the_weights_says_so():
    results = evaluations()
    protocol = next(iter(results.values()))["protocol"]
    for chosen_by, flatters in ((f"{protocol}=town", True), ("another=town", False)):
        stage = {"stage": "finetune", "best": {"step": 3, "validation": chosen_by}, "data": {"name": "my_places"}}
        card = card_of(evaluations=results, training=read_training({"stages": [stage]}))
        assert ("flatters them" in section(card, "Results")) is flatters
        # What a folder is called is no name on the Hub.
        assert card.data.datasets is None


def test_each_of_several_teachers_is_named():
    stage = {"stage": "distill", "teacher": {"name": ["/runs/cricavpr", "facebook/dinov2-base"], "width": [768, 384]}}
    made = section(card_of(training=read_training({"stages": [stage]})), "How it was made")
    assert "| teacher.name | cricavpr, facebook/dinov2-base |" in made
    assert "| teacher.width | 768, 384 |" in made


def test_training_is_shown_by_stage():
    made = section(card_of(training=read_training(TRAINING)), "How it was made")
    assert made.count("**Stage") == 2
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", made, re.MULTILINE)
    assert ("teacher.name", "cricavpr") in rows
    assert ("arguments.learning_rate", "2.5e-05") in rows
    assert ("arguments.loss.margin", "0.37") in rows
    assert ("arguments.amp", "yes") in rows
    assert ("best.curve", "see training.json") in rows
    assert ("datasets", "GSV-Cities, A\\|B") in rows
    assert ("step", "1234") in rows
    # The recipe is folded up; the second stage has none.
    assert made.count("<details>") == made.count("</details>") == 1
    assert made.index("best.step") < made.index("<details>") < made.index("arguments.amp") < made.index("</details>")
    assert [value for name, value in rows if name.startswith("best")] == ["0.625", "340", "see training.json"]


def test_text_of_records_stays_within_its_line():
    evaluation = made_evaluation()
    evil = dataclasses.replace(
        evaluation,
        protocol=dataclasses.replace(evaluation.protocol, name="a|b", rule="one\n# two", notes=("x\n\n## y",)),
    )
    card = card_of(results=evaluations(evil), notes=["These weights\nare random."])
    assert "| a\\|b | 6 | 4 | 50.0 (2) | 75.0 (3) |" in card.text
    assert "Positives: one # two." in card.text
    assert "\n**These weights are random.**\n" in card.text
    headings = re.findall(r"^#+ .*$", re.sub(r"```.*?```", "", card.text, flags=re.DOTALL), re.MULTILINE)
    assert [each.strip("# ") for each in headings] == [
        "d2vpr-town",
        "How to use it",
        "Results",
        "Size and cost",
        "How it was made",
        "Intended use",
        "Limits",
        "Citation",
        "Licence",
    ]


def test_five_lines_show_how_to_use_it():
    card = card_of(revision="v2")
    lines = [line for line in re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1].splitlines() if line]
    assert len(lines) == 5
    assert all('"me/d2vpr-town", revision="v2", trust_remote_code=True' in line for line in lines[2:4])


def test_wheels_carry_the_template_and_the_metric():
    """An editable install has the metric at its root: a second d2vpr_hf there would be found for the package."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    assert wheel["only-include"] == ["src/d2vpr_hf", "metrics/recall_at_k"]
    in_wheel, in_checkout = push._METRIC_FOLDERS
    assert in_checkout == ROOT / "metrics" / "recall_at_k"
    assert in_checkout.is_dir()
    assert f"{wheel['sources']['metrics']}/recall_at_k" == in_wheel.relative_to(ROOT / "src").as_posix()
    assert card_module._TEMPLATE.is_relative_to(ROOT / "src" / "d2vpr_hf")
    assert card_module._TEMPLATE.is_file()
    assert build["dev-mode-dirs"] == ["src"]
    assert "force-include" not in wheel


def made_again(folder, work, card=None):
    """The card of a released folder, made anew of what the folder holds."""
    card = card or folder / "README.md"
    written = card.read_text(encoding="utf-8")
    repo_id = re.search(r'(?:from_pretrained|pretrained_path)\("([^"]+)"', written)[1]
    notes = re.findall(r"^\*\*(.+)\*\*$", written[: written.index("## How to use it")], re.MULTILINE)
    model, processor = D2VprModel.from_pretrained(folder), D2VprImageProcessor.from_pretrained(folder)
    license = ModelCard.load(card).data.license
    release = write_release(work, model, processor, repo_id, **recorded_results(folder), license=license, notes=notes)
    return (release / "README.md").read_text(encoding="utf-8")


def test_a_card_is_made_again_of_its_own_records(tmp_path, tiny_model, tiny_processor):
    evaluation = dataclasses.replace(made_evaluation(), weight_hash=weight_hash(tiny_model))
    comparison = COMPARISON | {"model": {"name": "tiny", "weight_hash": weight_hash(tiny_model)}}
    options = {"evaluations": [evaluation], "comparisons": [comparison], "training": TRAINING, "about": ABOUT}
    options |= {"license": "mit", "notes": ["A note."]}
    for name in ("me/tiny", "tiny"):
        folder = write_release(tmp_path / name / "release", tiny_model, tiny_processor, name, **options)
        again = made_again(folder, tmp_path / name / "again")
        assert again == (folder / "README.md").read_text(encoding="utf-8")
        assert "## What it is not" in again


def test_a_comparison_is_a_table_of_methods():
    tables = read_comparisons([COMPARISON], "a" * 64)
    card = card_of(results={}, comparisons=tables)
    shown = section(card, "Results")
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert rows == [
        "| method | recall@1 | hits | interval | model minus it (interval) | source |",
        "|---|---|---|---|---|---|",
        "| d2vpr-small | 70.3 | 78 of 111 | 61.3 to 78.4 |  |  |",
        "| grey\\|thumbnail | 27.0 | 30 of 111 |  | +43.2 (+33.3 to +53.2) |  |",
        "| NetVLAD | 67.6 |  |  |  | published |",
    ]
    assert "**corridor** ([comparisons/corridor.json](comparisons/corridor.json)): 111 database, 111 queries." in shown
    assert "Positives: within 4 frames. One remark. Measured by `d2vpr evaluate`." in shown
    assert "No evaluation" not in shown
    # A measure that has no hits has no such column.
    rows = [{"method": "d2vpr-small", "value": 0.5}]
    plain = COMPARISON | {"measure": "mean average precision", "rows": rows}
    shown = section(card_of(results={}, comparisons=read_comparisons([plain], "a" * 64)), "Results")
    assert "| method | mean average precision |\n|---|---|\n| d2vpr-small | 50.0 |" in shown
    # Of a few queries the hits are shown, and no share.
    few = COMPARISON | {"rows": [{"method": "d2vpr-small", "value": 0.75, "hits": 3, "of": 4}]}
    shown = section(card_of(results={}, comparisons=read_comparisons([few], "a" * 64)), "Results")
    assert "| method | hits |\n|---|---|\n| d2vpr-small | 3 of 4 |" in shown


def test_a_comparison_of_evaluations_is_taken_too():
    right, wrong = [[0, 1, 2, 3, 4]] * 4, [[5, 4, 3, 2, 1]] * 4
    comparison = Comparison({"ours": made_evaluation(right), "theirs": made_evaluation(wrong)}).to_json()
    (table,) = read_comparisons([comparison], "a" * 64).values()
    assert [(row["method"], row["value"], row["hits"], row["of"]) for row in table["rows"]] == [
        ("ours", 0.25, 1, 4),
        ("theirs", 0.0, 0, 4),
    ]
    # Both say by how much the model is better.
    found = comparison["differences"]["theirs"]["recall@1"]
    assert table["rows"][1]["difference"] == 0.25 == found["difference"]
    low, high = table["rows"][1]["difference_interval"]
    assert low <= 0.25 <= high
    assert low < high
    # A file of an earlier version calls the model the baseline and says by how much the other one is better.
    turned = {"recall@1": {"difference": -0.25, "interval": [-high, -low]}}
    old = {name: value for name, value in comparison.items() if name not in ("model", "difference")}
    old |= {"baseline": "ours", "differences": {"theirs": turned}}
    assert read_comparisons([old], "a" * 64) == dict.fromkeys(read_comparisons([comparison], "a" * 64), table)


def test_what_is_said_besides_figures_is_on_the_card():
    card = card_of(about=read_about(ABOUT))
    assert "- It is not the published one." in section(card, "What it is not")
    data = section(card, "Data")
    assert f"| [a/b](https://example.org/a) | training | 1,234 | CC-BY-4.0 | `{'e' * 64}` |" in data
    assert "| drawn towns |  |  | none |  |" in data
    assert "Credits:\n\n- Somebody, CC-BY-4.0: a.jpg" in data
    made = section(card, "How it was made")
    assert "**Teacher**: MobileNetV2. Terms of its weights: Apache-2.0." in made
    assert "(commit `abc`, seeds 0, 1):\n\n```\naccelerate launch train.py\n```\n- Then wait." in made
    assert "## Data" not in card_of().text
    assert "What it is not" not in card_of().text
    assert "seeds 0)" in card_of(about={"retrain": {"command": "x", "seeds": 0}}).text


def test_a_shipped_card_says_how_the_package_opens_it():
    card = model_card("d2vpr-small", D2VprConfig(), cost=COST, evaluations={})
    assert 'd2vpr_hf.pretrained_path("d2vpr-small")' in section(card, "How to use it")
    assert 'from_pretrained("d2vpr-small")' not in card.text
    assert "pretrained_path" not in card_of().text


HOSTILE = "<img src=x onerror=alert(1)> | `<b>` &#106;avascript: </details>\n# Heading"


def test_texts_of_records_are_text_on_the_card():
    """Nothing that a record says becomes HTML, ends a table or a code block, or begins a heading."""
    source = {"name": HOSTILE, "terms": HOSTILE, "use": HOSTILE, "files_sha256": HOSTILE}
    about = {
        "not_this": [HOSTILE],
        "credits": [HOSTILE],
        "data_sources": [source],
        "teacher": {"name": HOSTILE, "terms": HOSTILE, "use": HOSTILE},
        "retrain": {"command": "train ```\n<script>", "seeds": [HOSTILE], "commit": HOSTILE, "steps": [HOSTILE]},
    }
    made = made_evaluation().to_json() | {"rule": HOSTILE, "notes": [HOSTILE]}
    comparison = COMPARISON | {"name": HOSTILE, "rule": HOSTILE, "remarks": [HOSTILE], "command": HOSTILE}
    comparison |= {"rows": [{"method": HOSTILE, "value": 0.5, "source": HOSTILE}], "counts": {HOSTILE: 1}}
    stage = {"stage": HOSTILE, "data": HOSTILE, "arguments": {HOSTILE: HOSTILE}}
    card = model_card(
        "me/tiny",
        D2VprConfig(converted_from={"file": HOSTILE, "sha256": HOSTILE}),
        cost=COST,
        evaluations={"made.json": made},
        comparisons={"c.json": comparison},
        training={"stages": [stage]},
        about=about,
        license=HOSTILE,
        notes=[HOSTILE],
    )
    text = card.text
    assert text.count("onerror") >= 20
    assert "```\ntrain '''\n<script>\n```" in text
    outside = re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    assert not re.search(r"<(?!details>|/details>|summary>|/summary>)", outside)
    assert outside.count("<details>") == outside.count("</details>") == 1
    assert text.count("\n# ") == 1
    assert "&amp;#106;avascript:" in text
    for line in text.splitlines():
        if line.startswith("|") and "onerror" in line:
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 6), line


def test_shipped_cards_are_those_of_shipped_checkpoints(tmp_path):
    """In model_cards lies the card of each checkpoint that the package ships, as its records make it today."""
    cards = {path.stem for path in (ROOT / "model_cards").glob("*.md")}
    shipped = {
        path.parent.name: path.parent for path in (ROOT / "src/d2vpr_hf/models/pretrained").glob("*/config.json")
    }
    assert cards == set(shipped)
    for name, folder in shipped.items():
        card = ROOT / "model_cards" / f"{name}.md"
        text = card.read_text(encoding="utf-8")
        there = f"../src/d2vpr_hf/models/pretrained/{name}/"
        assert text.replace(there, "") == made_again(folder, tmp_path / name, card)
        links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
        assert len(links) > 5
        for link in links:
            assert (card.parent / link).is_file(), link
