"""edge-cl: continual learning of new object classes on the robot itself (CL-LoRA on frozen vision transformers)."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_cl.config import LearnConfig
    from edge_cl.errors import EdgeClError
    from edge_cl.learner import Learner

__all__ = ["EdgeClError", "LearnConfig", "Learner"]

_HOMES = {"EdgeClError": "edge_cl.errors", "LearnConfig": "edge_cl.config", "Learner": "edge_cl.learner"}


# ONNX Runtime would write an id of the machine into the home directory and report its use. It reads this when it loads.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: `import edge_cl` stays light."""
    if name == "__version__":
        from edge_cl.store import edge_cl_version

        return edge_cl_version()
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edge_cl' has no attribute {name!r}")
