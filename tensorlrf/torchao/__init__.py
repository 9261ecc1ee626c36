"""torchao's `quantize_` on layers on factors.

torchao quantises what is an `nn.Linear`, and passes over all else. After `import tensorlrf.torchao`
(extra `torchao`) its `quantize_` acts on factored linear layers as it does on what
`tensorlrf.export` makes of them: the layer becomes, in place, the Linear layers that its path is
made of, one a factor, and these are quantised. The import has torchao know the layers, for this
process; a second one does nothing. There is nothing else to call.

Convolutions and embeddings on factors stay, as torchao leaves those of torch. Of what else has to
stay a `TensorlrfWarning` tells: a format whose path is not made of Linear layers, such as Monarch,
and the matrices of an LSTM or of an attention with a latent cache, which these read by themselves.

A filter of one's own that asks for `nn.Linear` gets no factored layer: ask for
`(nn.Linear, tensorlrf.nn.FactoredLinear)`.

Examples
--------
::

    import tensorlrf, tensorlrf.torchao
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    small, report = tensorlrf.compress(model, keep_params=0.5, calibration=batches)
    quantize_(small, Int8WeightOnlyConfig())
"""

from tensorlrf.torchao._register import register

__all__: list[str] = []

register()
