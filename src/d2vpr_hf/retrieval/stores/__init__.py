"""The kinds of stores that an index can keep its vectors in."""

from importlib import import_module

from ..similarity import Metric
from .base import VectorStore

# Kinds by the module and class that keep them; loaded when they are asked for, since one may need more than we do.
STORES = {"faiss-flat-ip": (".flat", "FaissStore"), "faiss-flat-l2": (".flat", "FaissStore")}
# The kind of a new index.
DEFAULT_STORES: dict[Metric, str] = {"inner_product": "faiss-flat-ip", "l2": "faiss-flat-l2"}


def store_class(kind: str) -> type[VectorStore]:
    """The class that keeps a kind of store.

    Raises: ValueError if there is no such kind.
    """
    if kind not in STORES:
        raise ValueError(
            f"a store of kind {kind[:40]!r}, but this version of d2vpr_hf has {' and '.join(STORES)} alone. Update "
            "d2vpr_hf, or build the index again."
        )
    module, name = STORES[kind]
    return getattr(import_module(module, __name__), name)
