"""Two executions of one model beside each other: where they part, how the difference grows, and why."""

from exactq.difference.causes import REMEDIES, Cause
from exactq.difference.compare import diff
from exactq.difference.executions import WAYS, Execution, execution, observed, prepared
from exactq.difference.findings import Diff, FoundCause, TensorDiff

__all__ = [
    "REMEDIES",
    "WAYS",
    "Cause",
    "Diff",
    "Execution",
    "FoundCause",
    "TensorDiff",
    "diff",
    "execution",
    "observed",
    "prepared",
]
