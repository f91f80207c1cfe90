"""Models that others' code quantized or prepared, as ours: torch.ao in eager and FX mode, torchao's PT2E."""

from exactq.conversion.foreign import Foreign, foreign, is_foreign
from exactq.conversion.prepared import Jump

__all__ = ["Foreign", "Jump", "foreign", "is_foreign"]
