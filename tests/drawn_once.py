"""Random cases for tests of many parameters, drawn once.

Under the fast suite's profile hypothesis gives each parameter the same cases, since its draws follow from the test's
source; and to draw a case takes ten times what a policy does with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

Test = Callable[..., None]


def given_once(max_examples: int, **strategies: SearchStrategy[Any]) -> Callable[[Test], Test]:
    """As `given` with `settings(max_examples=...)`, below `parametrize`; each test has copies of its own.

    What fails is looked for again by hypothesis itself, which shrinks it. Under a profile that draws anew each time
    (`new`), hypothesis does it all.
    """
    limited = settings(max_examples=max_examples, deadline=None)

    def decorate(test: Test) -> Test:
        sought: Test = limited(given(**strategies)(test))
        cases: list[dict[str, Any]] = []

        @limited
        @given(**strategies)
        def draw(**drawn: Any) -> None:
            cases.append(drawn)

        def check(**parameters: Any) -> None:
            if not settings.default.derandomize:
                return sought(**parameters)
            if not cases:
                draw()
            assert len(cases) >= max_examples // 2, "hypothesis drew fewer cases than the test is to see"
            try:
                for drawn in cases:
                    test(**parameters, **deepcopy(drawn))
            except Exception:
                sought(**parameters)
                raise
            return None

        check.__name__, check.__qualname__, check.__doc__ = test.__name__, test.__qualname__, test.__doc__
        check.__module__ = test.__module__
        signature = inspect.signature(test)
        kept = [given for name, given in signature.parameters.items() if name not in strategies]
        check.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return check

    return decorate
