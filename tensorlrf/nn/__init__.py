"""Layers that own factors as parameters and stand in for those of torch."""

from tensorlrf.nn._conv2d import FactoredConv2d
from tensorlrf.nn._factorize import factorize
from tensorlrf.nn._layer import FactoredLayer
from tensorlrf.nn._linear import FactoredLinear

__all__ = ["FactoredConv2d", "FactoredLayer", "FactoredLinear", "factorize"]
