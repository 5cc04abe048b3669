"""Teaches transformers' Auto classes our models as soon as they are loaded, and never loads them itself.

Importing transformers takes seconds, which `import d2vpr_hf` and `d2vpr --help` shouldn't.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_OURS, _THEIRS = __name__.partition(".")[0], "transformers"


def _register_configurations() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .cricavpr.configuration_cricavpr import CricaVprConfig
    from .d2vpr.configuration_d2vpr import D2VprConfig

    AutoConfig.register("d2vpr", D2VprConfig, exist_ok=True)
    AutoConfig.register("cricavpr", CricaVprConfig, exist_ok=True)


def _register_models() -> None:
    from transformers.models.auto.modeling_auto import AutoModel

    from .cricavpr.modeling_cricavpr import CricaVprConfig, CricaVprModel
    from .d2vpr.modeling_d2vpr import D2VprConfig, D2VprModel

    AutoModel.register(D2VprConfig, D2VprModel, exist_ok=True)
    AutoModel.register(CricaVprConfig, CricaVprModel, exist_ok=True)


def _register_processors() -> None:
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    from .cricavpr.configuration_cricavpr import CricaVprConfig
    from .d2vpr.configuration_d2vpr import D2VprConfig
    from .d2vpr.image_processing_d2vpr import D2VprImageProcessor

    for config in (D2VprConfig, CricaVprConfig):
        AutoImageProcessor.register(config, image_processor_classes={"pil": D2VprImageProcessor}, exist_ok=True)


class _AutoClassFinder:
    """Watches imports of transformers and of this package, and registers our models once theirs are loaded.

    It waits for the outermost of them to end: before, a module that our models import may be half loaded.
    """

    def __init__(self) -> None:
        self._pending: dict[str, Callable[[], None]] = {
            f"{_THEIRS}.models.auto.configuration_auto": _register_configurations,
            f"{_THEIRS}.models.auto.modeling_auto": _register_models,
            f"{_THEIRS}.models.auto.image_processing_auto": _register_processors,
        }
        self._thread = threading.local()  # each imports on its own

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in (_OURS, _THEIRS):
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            self._watch(spec)
        return spec

    def register_loaded(self) -> None:
        """Registers what belongs to the modules that are loaded by now; with the last of them the watch ends."""
        for name in [name for name in self._pending if name in sys.modules]:
            if register := self._pending.pop(name, None):
                register()
        if not self._pending and self in sys.meta_path:
            sys.meta_path.remove(self)

    def _watch(self, spec: ModuleSpec) -> None:
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self._thread.depth = getattr(self._thread, "depth", 0) + 1
            try:
                execute(module)
            finally:
                self._thread.depth -= 1
            if not self._thread.depth:
                self.register_loaded()

        spec.loader.exec_module = exec_module


def teach_auto_classes() -> None:
    """Has `AutoConfig`, `AutoModel` and `AutoImageProcessor` know our models, whichever is imported first."""
    finder = _AutoClassFinder()
    sys.meta_path.insert(0, finder)
    finder.register_loaded()
