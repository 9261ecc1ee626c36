"""Models of transformers on factored layers, loaded and saved by transformers itself.

After `import tensorlrf.hf` (extra `hf`) `from_pretrained` of any class or Auto class builds the
factored layers of a folder that `tensorlrf.save` or `tensorlrf.compress_checkpoint` wrote, on meta,
and reads its tensors into them; `save_pretrained` of a model with factored layers writes such a
folder. `Trainer`, `pipeline`, `generate` and what builds on them follow. The import registers the
quantisation method "tensorlrf" with transformers, and has `save_pretrained` know factored layers;
a second import does nothing.

Examples
--------
::

    import tensorlrf, tensorlrf.hf
    from transformers import AutoModelForCausalLM

    small, report = tensorlrf.compress(model, keep_params=0.5)
    small.save_pretrained("small")
    again = AutoModelForCausalLM.from_pretrained("small")
"""

from tensorlrf.hf._config import TensorlrfConfig
from tensorlrf.hf._quantizer import TensorlrfQuantizer
from tensorlrf.hf._register import register

__all__ = ["TensorlrfConfig", "TensorlrfQuantizer"]

register()
