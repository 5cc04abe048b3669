"""A page on which to try the metric: what a Hugging Face Space of this folder runs.

It doesn't use `evaluate.utils.launch_gradio_widget`, which needs a Gradio older than 4.
"""

import json
from pathlib import Path
from typing import Any

import evaluate
import gradio

FOLDER = Path(__file__).parent
METRIC = evaluate.load(str(FOLDER / "recall_at_k.py"))
# predictions, references, cut-offs, denominator
EXAMPLES = [
    ["[[3, 1, 2], [0, 2, 1]]", "[[3], [1, 7]]", "[1, 3]", "all"],
    ["[[3, 1], [0, 2], [4, -1]]", "[[1], [0, 2], []]", "[1, 2]", "with_positives"],
]


def score(predictions: str, references: str, k: str, denominator: str) -> dict[str, Any]:
    """The metric of lists written as JSON; what is wrong with them is shown on the page."""
    try:
        lists = {"predictions": predictions, "references": references, "k": k}
        return METRIC.compute(**{name: _parsed(text, name) for name, text in lists.items()}, denominator=denominator)
    except ValueError as error:
        raise gradio.Error(str(error)) from error


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} isn't JSON ({error}). Write lists of numbers, such as {EXAMPLES[0][0]}.") from error


def page() -> gradio.Interface:
    """The page: three lists, the denominator, the result, and the card below."""
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    return gradio.Interface(
        score,
        inputs=[
            gradio.Textbox(label="predictions", info="for each query, the ids of its answers, best first", lines=3),
            gradio.Textbox(label="references", info="for each query, the ids of its positives", lines=3),
            gradio.Textbox(label="k", info="cut-offs", value="[1]"),
            gradio.Radio(["all", "with_positives"], label="denominator", value="all"),
        ],
        outputs=gradio.JSON(label="result"),
        examples=EXAMPLES,
        title="recall@k",
        description=METRIC.description,
        article="## " + card.split("\n## ", 1)[1],
        api_name="score",
        flagging_mode="never",
    )


if __name__ == "__main__":
    page().launch()
