"""What a model is judged by: ready-made values for `evaluate=` of `compress` and others.

fluent = tensorlrf.metrics.perplexity("held_out.txt", tokenizer)      the smaller the better
same = tensorlrf.metrics.agreement(batches, model)                    the larger the better
small, report = tensorlrf.compress(model, max_drop=0.5, evaluate=fluent, calibration=others)
"""

from tensorlrf.compression import metrics as _behind
from tensorlrf.compression.metrics import *  # noqa: F403  # its list of names is this one

__all__ = _behind.__all__
