"""Functions compiled at their first call, which run as they are where there is no compiler."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from gendd.errors import first_line

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Compiled(Generic[Arguments, Result]):
    """A function compiled by ``torch.compile`` at its first call.

    If that fails, it runs as it is from then on, with one warning.

    Args:
        function: Of tensors.
        name: Its name in the warning.
    """

    def __init__(self, function: Callable[Arguments, Result], name: str) -> None:
        self.function, self.name = function, name
        self._compiled: Callable[Arguments, Result] | None = torch.compile(function)

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled[Arguments, Result]:
        # the compiled function of a bound method belongs to the original object
        return Compiled(copy.deepcopy(self.function, memo), self.name)

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if self._compiled is None:
            return self.function(*args, **kwargs)
        try:
            return self._compiled(*args, **kwargs)
        except Exception as error:  # from the compiler, which may be missing
            found = self.function(*args, **kwargs)  # raises the function's own errors
            warnings.warn(f"{self.name}: not compiled ({first_line(error)})", stacklevel=2)
            self._compiled = None
            return found
