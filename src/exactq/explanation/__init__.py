"""One integer in full: every step from the codes that a kernel reads to the code that it writes, and how a bias is held."""

from __future__ import annotations

from exactq.explanation.biases import Biases, explain_biases
from exactq.explanation.element import Explanation, explain, explain_layers, explain_many

__all__ = ["Biases", "Explanation", "explain", "explain_biases", "explain_layers", "explain_many"]
