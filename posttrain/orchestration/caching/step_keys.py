"""A cache function for each step: ZenML calls one by its import path and without arguments.

The attribute `steps-train_sft` of this module is the function for the module `steps.train_sft`.
"""

import functools
from collections.abc import Callable

from zenml.config.cache_policy import CachePolicy
from zenml.config.source import Source, SourceType

from posttrain.orchestration.caching import cache_key


def cache_policy(module: str) -> CachePolicy:
    """Return the policy of a step: its key includes the digest of the code that the step uses.

    Args:
        module: name of the module that defines the step.
    """
    # The digest covers the step's own code too; ZenML's own hash of it would change with every comment.
    function = Source(module=__name__, attribute=module.replace(".", "-"), type=SourceType.UNKNOWN)
    return CachePolicy(include_step_code=False, cache_func=function)


def __getattr__(name: str) -> Callable[[], str]:
    """Return the cache function of a step; `name` is its module's name with hyphens for dots."""
    if name.startswith("__"):
        raise AttributeError(name)
    return functools.partial(_digest, name.replace("-", "."))


def _digest(module: str) -> str:
    return cache_key.step_digest(module)
