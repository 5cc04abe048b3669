"""Finds what the package carries and its checkout keeps elsewhere: the card's template and the metric's folder."""

from pathlib import Path

CARD_TEMPLATE = "model_cards/template.md"
METRIC_FOLDER = "metrics/recall_at_k"

# A wheel has them beside this file, a checkout, which an editable install runs from, at its root.
_PLACES = (Path(__file__).parent / "carried", Path(__file__).parents[3])


def carried_path(name: str) -> Path:
    """The file or folder, named by its path in the checkout.

    Raises: FileNotFoundError if the installation lacks it.
    """
    for place in _PLACES:
        if (place / name).exists():
            return place / name
    raise FileNotFoundError(
        f"{name} is neither in the installed package ({_PLACES[0]}) nor in its checkout ({_PLACES[1]}), though every "
        "installation carries it. Install d2vpr-hf again."
    )
