"""Model families whose routers hand over their routing in a form of their own: a module each, here or in an extension.

A module names the class of its routers, and how their routing is read and written back, or why no policy serves them:

    ROUTER = "SomeTopKRouter"
    FORM = Form(read=..., write=...)     # lynx_exp.models.odd_families.forms.Form
    REFUSED = "why"                      # instead of FORM

How the routers score is not declared but proved, as with every family.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from lynx_exp.extensions import extended, modules

__path__ += extended("models")


@dataclass(frozen=True, kw_only=True)
class OddFamily:
    """What one module says."""

    form: Any = None
    """A `Form`; None: refused."""
    refused: str | None = None


@cache
def odd_families() -> dict[str, OddFamily]:
    """Router class: what is known of it. ValueError for a module that does not say it, or a class that two name."""
    here = Path(__file__).parent
    own = [module.name for module in iter_modules([str(here)]) if module.name != "forms"]  # what the families share
    found: dict[str, OddFamily] = {}
    for name in (*own, *modules("models", here)):
        module = import_module(f"{__name__}.{name}")
        router = getattr(module, "ROUTER", None)
        family = OddFamily(form=getattr(module, "FORM", None), refused=getattr(module, "REFUSED", None))
        if not isinstance(router, str) or (family.form is None) == (family.refused is None):
            raise ValueError(f"{module.__file__}: must have ROUTER, the name of a class, and FORM or REFUSED")
        if router in found:
            raise ValueError(f"{module.__file__}: {router} has a form already")
        found[router] = family
    return found
