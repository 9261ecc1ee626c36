"""Models of diffusers on factored layers, loaded and saved by diffusers itself.

After `import tensorlrf.diffusers` (extra `diffusers`) `from_pretrained` of a model or a pipeline
builds the factored layers of a folder that `tensorlrf.save` wrote, and reads its tensors into them;
`save_pretrained` of a model with factored layers, or of a pipeline that has one, writes such a
folder. The import registers the quantisation method "tensorlrf" with diffusers; a second import
does nothing.

Examples
--------
::

    import tensorlrf, tensorlrf.diffusers
    from diffusers import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained("pictures")
    pipeline.unet, report = tensorlrf.compress(pipeline.unet, keep_params=0.5, calibration=batches)
    pipeline.save_pretrained("pictures-small")
    again = DDPMPipeline.from_pretrained("pictures-small")
"""

from tensorlrf.diffusers._quantizer import TensorlrfConfig, TensorlrfQuantizer
from tensorlrf.diffusers._register import register

__all__ = ["TensorlrfConfig", "TensorlrfQuantizer"]

register()
