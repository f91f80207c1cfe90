"""Batches -> ranges: what an activation's reals span, seen once, in little memory, merged in any order."""

from exactq.calibration.observers import OBSERVERS, Observer, observer_named

__all__ = ["OBSERVERS", "Observer", "observer_named"]
