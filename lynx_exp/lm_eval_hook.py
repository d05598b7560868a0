"""Makes the stock `lm_eval` command know `--model lynx`.

lm-eval finds models by its own list alone. `lynx_exp_lm_eval.pth`, which is installed beside the package, puts an
object on `sys.meta_path` whenever Python starts, and nothing more: this module is imported when somebody imports
lm-eval's list of models.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

LIST = "lm_eval.models"
TARGET = "lynx_exp.lm_eval_model:LynxLM"


def find(finder: MetaPathFinder, path: Sequence[str] | None) -> ModuleSpec | None:
    """Where lm-eval's list is: a spec that adds the model when the list has been made, and then retires `finder`."""
    spec = PathFinder.find_spec(LIST, path)
    if spec is not None and spec.loader is not None:
        execute = spec.loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            register()
            if finder in sys.meta_path:
                sys.meta_path.remove(finder)

        spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
    return spec


def register() -> None:
    """Add `lynx` to lm-eval's models; done twice, it is there once. An lm-eval without such a list goes on without."""
    try:
        from lm_eval.api.registry import model_registry

        if "lynx" not in model_registry:
            model_registry.register("lynx", target=TARGET)
    except Exception:
        return
