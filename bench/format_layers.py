"""Layers of the examples' models with what their inputs look like: the weights on which formats
are compared by `bench/formats.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common import Batch, call
from torch import Tensor, nn

from tensorlrf.compression.calibration._dense_layer import DenseLayer
from tensorlrf.compression.calibration.moments._moments import Moments, moments_of

LINEAR = ("svd", "kron", "tt", "tr", "blr", "monarch", "blast", "hierarchical")
CONV = ("svd", "tucker", "cp", "kron", "tt")
# A kernel of one element is a matrix, and Tucker, CP and trains of it are a low-rank one.
POINTWISE = ("svd", "kron")


@dataclass(frozen=True)
class Layer:
    """One weight, and what goes into it.

    weight   (out, in) or (O, I, kh, kw)
    gram     (n, n) float64: second moments of the calibration inputs, n = in or I kh kw
    held     (n, n) float64: of inputs that the calibration has not seen
    x        the layer's input in the model's own example, for times
    options  stride, padding and dilation of a convolution
    """

    weight: Tensor
    bias: Tensor | None
    gram: Tensor
    held: Tensor
    x: Tensor
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """One model: how to get it and its inputs, and which of its layers are looked at.

    layers  short name -> qualified name
    """

    load: Callable[[], nn.Module]
    calibration: Callable[[], Iterable[Batch]]
    held_out: Callable[[], Iterable[Batch]]
    example: Callable[[], Batch]
    layers: Mapping[str, str]
    note: str

    def made(self, names: Sequence[str]) -> dict[str, Layer]:
        """The layers of these short names, from one pass over calibration and held-out inputs."""
        model = self.load()
        paths = {name: self.layers[name] for name in names}
        gram = moments(model, paths.values(), self.calibration())
        held = moments(model, paths.values(), self.held_out())
        inputs = inputs_of(model, paths.values(), self.example())
        return {
            name: layer_of(model.get_submodule(path), gram[path], held[path], inputs[path])
            for name, path in paths.items()
        }


def formats_of(shape: Sequence[int]) -> tuple[str, ...]:
    """The formats that are compared on a weight of this shape."""
    if len(shape) == 2:
        return LINEAR
    return POINTWISE if all(k == 1 for k in shape[2:]) else CONV


def layer_of(module: nn.Module, gram: Tensor, held: Tensor, x: Tensor) -> Layer:
    """From a torch layer and what was seen of its inputs."""
    names = ("stride", "padding", "dilation") if isinstance(module, nn.Conv2d) else ()
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    return Layer(
        weight=module.weight.detach(),  # type: ignore[operator, union-attr]
        bias=None if bias is None else bias.detach(),
        gram=gram,
        held=held,
        x=x,
        options={name: getattr(module, name) for name in names},
    )


def moments(model: nn.Module, paths: Iterable[str], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """G = X X^T / N of each layer's inputs over the batches, padded tokens left out."""
    sums: dict[str, Moments] = {
        path: moments_of(DenseLayer.of(model.get_submodule(path))) for path in paths
    }
    for batch in batches:
        mask = None if isinstance(batch, Tensor) else batch.get("attention_mask")

        def seen(path: str, x: Tensor, mask: Tensor | None = mask) -> None:
            sums[path].add(without_padding(x, mask))

        _watch(model, sums, batch, seen)
    return {path: total.gram() for path, total in sums.items()}


def inputs_of(model: nn.Module, paths: Iterable[str], batch: Batch) -> dict[str, Tensor]:
    """The input of each layer in one pass."""
    found: dict[str, Tensor] = {}

    def seen(path: str, x: Tensor) -> None:
        # An activation that works in place would change it.
        found[path] = x.detach().clone()

    _watch(model, paths, batch, seen)
    return found


def without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """(N, n) rows of the tokens that count; an input of another kind is all kept."""
    if mask is None or x.ndim != 3 or x.shape[:2] != mask.shape:
        return x
    return x[mask.bool()]


def _watch(
    model: nn.Module, paths: Iterable[str], batch: Batch, seen: Callable[[str, Tensor], None]
) -> None:
    def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, given: seen(path, given[0])

    handles = [model.get_submodule(path).register_forward_pre_hook(hook(path)) for path in paths]
    try:
        call(model, batch)
    finally:
        for handle in handles:
            handle.remove()


def _craft() -> Source:
    import detector
    from scenes import make_scenes

    return Source(
        load=detector.load_detector,
        calibration=detector.calibration_batches,
        held_out=lambda: [detector.as_input([scene]) for scene in make_scenes("validation", 8)],
        example=lambda: detector.as_input(make_scenes("validation", 1)),
        layers={
            "slice1.10": "basenet.slice1.10",
            "slice2.17": "basenet.slice2.17",
            "upconv2.3": "upconv2.conv.3",
            "upconv2.0": "upconv2.conv.0",
        },
        note="CRAFT: batch norms folded, channels_last; calibrated on 12 scenes, held out 8 "
        "validation scenes of other words, fonts and pictures; latency of one scene.",
    )


def _minilm() -> Source:
    import minilm
    import texts

    tokenizer = minilm.load_tokenizer()
    parts = {
        "query": "attention.self.query",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
    }
    return Source(
        load=minilm.load_minilm,
        calibration=lambda: minilm.calibration_batches(tokenizer),
        held_out=lambda: minilm.batches(
            tokenizer, texts.documents(), tokens=minilm.CALIBRATION_TOKENS
        ),
        example=lambda: minilm.example(tokenizer),
        layers={
            f"{k}.{short}": f"encoder.layer.{k}.{path}"
            for k in (0, 5)
            for short, path in parts.items()
        },
        note="MiniLM: calibrated on the 300 documents of lee_background.cor, held out the 50 of "
        "lee.cor (96 tokens each); latency of 16 x 128 tokens.",
    )


def _smollm2() -> Source:
    import smollm2
    import texts

    tokenizer = smollm2.load_tokenizer()
    n_windows = 16  # 8,192 tokens: over five for each input of the widest layer

    def held_out() -> list[Batch]:
        return [{"input_ids": w[None]} for w in smollm2.windows(tokenizer, texts.documents(), 4)]

    parts = {"q": "self_attn.q_proj", "gate": "mlp.gate_proj", "down": "mlp.down_proj"}
    return Source(
        load=smollm2.load_smollm2,
        calibration=lambda: smollm2.calibration_batches(tokenizer, n_windows),
        held_out=held_out,
        example=lambda: smollm2.example(tokenizer),
        layers={
            f"{k}.{short}": f"model.layers.{k}.{path}"
            for k in (0, 15)
            for short, path in parts.items()
        },
        note=f"SmolLM2: calibrated on {n_windows} windows of 512 tokens of lee_background.cor, "
        "held out 4 of lee.cor; latency of 1 x 512 tokens.",
    )


SOURCES: dict[str, Callable[[], Source]] = {
    "craft": _craft,
    "minilm": _minilm,
    "smollm2": _smollm2,
}
