"""Gap analysis, filling and matching: arrays in, arrays out.

Importing this package loads nothing heavy: the coordinator imports it too.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthedge_core.synthedge import SynthEdge

__version__ = "0.1.0"
__all__ = ["SynthEdge", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "SynthEdge":
        from synthedge_core.synthedge import SynthEdge

        return SynthEdge
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
