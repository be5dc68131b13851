"""Gap analysis, filling and matching: arrays in, arrays out.

Importing this package loads nothing heavy: the coordinator imports it too.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthedge_core.conditional import ConditionalGenerator
    from synthedge_core.conditional_sampler import ConditionalSampler, alter_distributions
    from synthedge_core.constraint import Constraint
    from synthedge_core.evaluation import evaluate
    from synthedge_core.figures import compare_correlations, show_distributions
    from synthedge_core.metadata import MetaExtractor
    from synthedge_core.observed_rows import require_observed
    from synthedge_core.preprocessing import Preprocessor, preprocess
    from synthedge_core.rebalance import augment_imbalanced
    from synthedge_core.rebalance_baselines import rebalance_by_baseline
    from synthedge_core.rebalance_sampler import CopulaOverSampler
    from synthedge_core.synthedge import SynthEdge

__version__ = "0.1.0"
__all__ = [
    "ConditionalGenerator",
    "ConditionalSampler",
    "Constraint",
    "CopulaOverSampler",
    "MetaExtractor",
    "Preprocessor",
    "SynthEdge",
    "__version__",
    "alter_distributions",
    "augment_imbalanced",
    "compare_correlations",
    "evaluate",
    "preprocess",
    "rebalance_by_baseline",
    "require_observed",
    "show_distributions",
]

_MODULE_OF = {
    "ConditionalGenerator": "conditional",
    "ConditionalSampler": "conditional_sampler",
    "Constraint": "constraint",
    "CopulaOverSampler": "rebalance_sampler",
    "MetaExtractor": "metadata",
    "Preprocessor": "preprocessing",
    "SynthEdge": "synthedge",
    "alter_distributions": "conditional_sampler",
    "augment_imbalanced": "rebalance",
    "compare_correlations": "figures",
    "evaluate": "evaluation",
    "preprocess": "preprocessing",
    "rebalance_by_baseline": "rebalance_baselines",
    "require_observed": "observed_rows",
    "show_distributions": "figures",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"synthedge_core.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
