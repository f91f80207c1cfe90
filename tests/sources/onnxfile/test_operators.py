"""Every operator in every spelling computes what ONNX Runtime computes of the same file."""

from __future__ import annotations

import pytest

from exactq.sources.onnxfile.building import OPERATORS

from .cases import CASES
from .files import imported

pytestmark = pytest.mark.runtime


@pytest.mark.parametrize("name", CASES)
def test_a_node_computes_what_the_runtime_computes_and_frees_its_batch_where_that_is_proven(name: str) -> None:
    made = imported(CASES[name].proto())
    assert [i.batch for i in made.graph.inputs] == [CASES[name].free] * len(made.graph.inputs), made.note
    assert bool(made.note) is not CASES[name].free


def test_every_operator_has_a_case() -> None:
    shown = {node.op_type for case in CASES.values() for node in case.nodes}
    assert set(OPERATORS) - shown == set()
