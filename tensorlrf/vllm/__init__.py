"""Models on factors, served by vLLM.

vLLM finds this package by its entry point: where both are installed, `vllm serve FOLDER` and
`vllm.LLM(FOLDER)` take a folder that `tensorlrf.save`, `save_pretrained` or `compress_checkpoint`
wrote, and nothing is to be imported. Linear layers, embeddings and heads may be of low rank, each
of its own rank, or dense; `tensorlrf.export(model, for_="vllm")` makes such a model of any other.

Examples
--------
::

    small, report = tensorlrf.compress(model, keep_params=0.7, calibration=batches)
    tensorlrf.save(tensorlrf.export(small, for_="vllm"), "small")

    $ vllm serve small
"""

from __future__ import annotations

__all__ = ["register"]


def register() -> None:
    """Have vLLM know the quantisation method "tensorlrf"; vLLM calls it in each of its processes.

    A second call does nothing.

    Raises
    ------
    ImportError
        Where vLLM is not installed.
    """
    from vllm.model_executor.layers.quantization import (
        QUANTIZATION_METHODS,
        register_quantization_config,
    )

    from tensorlrf.compression.checkpoint.pretrained.quantization import METHOD

    if METHOD not in QUANTIZATION_METHODS:
        from tensorlrf.vllm._config import ServedConfig

        register_quantization_config(METHOD)(ServedConfig)
