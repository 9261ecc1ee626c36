"""What a model is judged by: ready-made values for `evaluate=`, public as `tensorlrf.metrics`."""

from tensorlrf.compression.metrics._labels import accuracy, f1
from tensorlrf.compression.metrics._metric import Metric
from tensorlrf.compression.metrics._outputs import agreement, cosine
from tensorlrf.compression.metrics._perplexity import perplexity

__all__ = ["Metric", "accuracy", "agreement", "cosine", "f1", "perplexity"]
