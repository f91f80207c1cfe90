"""Four operators that say in a traced float graph where a model of others keeps codes.

`exactq::on_grid(x, scale, zero, lo, hi, name)`: here the value `name` is encoded. `exactq::decoded(x)`: from here on it is real
again. `exactq::named(x, name)`: the value is called so, whatever it lives on. `exactq::dynamic(x, reduce_range)`: the layer
that reads this lays a grid over it. All give back what they read: the float graph around them is the model without its
rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("exactq", "FRAGMENT")
_LIBRARY.define("on_grid(Tensor x, float scale, int zero, int lo, int hi, str name) -> Tensor")
_LIBRARY.define("decoded(Tensor x) -> Tensor")
_LIBRARY.define("named(Tensor x, str name) -> Tensor")
_LIBRARY.define("dynamic(Tensor x, bool reduce_range) -> Tensor")


def _on_grid(x: Tensor, scale: float, zero: int, lo: int, hi: int, name: str) -> Tensor:
    return x.clone()


def _decoded(x: Tensor) -> Tensor:
    return x.clone()


def _named(x: Tensor, name: str) -> Tensor:
    return x.clone()


def _dynamic(x: Tensor, reduce_range: bool) -> Tensor:  # noqa: FBT001  # an operator's signature
    return x.clone()


_LIBRARY.impl("on_grid", _on_grid, "CompositeExplicitAutograd")
_LIBRARY.impl("decoded", _decoded, "CompositeExplicitAutograd")
_LIBRARY.impl("named", _named, "CompositeExplicitAutograd")
_LIBRARY.impl("dynamic", _dynamic, "CompositeExplicitAutograd")

ON_GRID: Any = torch.ops.exactq.on_grid.default
DECODED: Any = torch.ops.exactq.decoded.default
NAMED: Any = torch.ops.exactq.named.default
DYNAMIC: Any = torch.ops.exactq.dynamic.default
