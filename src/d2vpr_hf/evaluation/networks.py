"""Networks of any making, by the Python function that returns one: teachers in training, peers in a comparison."""

import inspect
import re
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import torch

from ..messages import did_you_mean

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@runtime_checkable
class TeacherNetwork(Protocol):
    """A network of any making that gives a map of local features.

    Of one that is a `torch.nn.Module`, weights and device are hashed and moved. Of any other the name, and `version` if
    it has one, stand for its weights.

    Attributes:
        name: for logs and cards.
        width: channels of the map.
    """

    name: str
    width: int

    def feature_map(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(images, width, rows, columns) of images (images, 3, height, width): RGB, normalised by ImageNet's statistics
        as the student's processor does it. The mean of the map is the image's global descriptor.
        """


def is_factory(name: str) -> bool:
    """Whether a name has the form "module.path:factory"."""
    return _FACTORY.fullmatch(name) is not None


def call_factory(name: str, role: str) -> TeacherNetwork:
    """What a function returns that is called without arguments.

    Args:
        name: "module.path:factory".
        role: what the network is wanted for, in errors: "teacher" or "peer".

    Raises: ValueError if there is no such module or function, or if it returns something else.
    """
    path, _, attribute = name.partition(":")
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"The {role} {name} can't be opened: {error}. Give a module that `python -c 'import {path}'` finds."
        ) from error
    if not hasattr(module, attribute):
        names = [known for known, value in vars(module).items() if inspect.isroutine(value)]
        meant = did_you_mean(attribute, names) or " Name a function of that module."
        raise ValueError(f"The {role} {name} can't be opened: {path} has no {attribute}.{meant}")
    network = getattr(module, attribute)()
    return checked_network(network, role, f"{name} returned a {type(network).__name__}")


def checked_network(network: Any, role: str, what: str) -> TeacherNetwork:
    """The network, if it is one.

    Args:
        what: what was found, in the error.

    Raises: ValueError.
    """
    if not isinstance(network, TeacherNetwork) or not isinstance(network.width, int):
        raise ValueError(
            f"{what}, but a {role} needs the attributes name (a text) and width (an integer) and the method "
            "feature_map (see TeacherNetwork). Add what is missing."
        )
    return network
