"""The models of the examples, as the harness of `bench/models.py` sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from common import FORMATS, Batch
from torch import nn

Judge = Callable[[nn.Module], dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """One model: where it comes from, what calibrates it, and how it is judged.

    load          the dense model
    architecture  the same without weights, on the meta device
    calibration   batches for `compress`
    example       the batch that times are measured on
    skip          globs of layers that stay
    judge         of the dense model -> function that judges a model, beside the dense one
    note          what a reader of the table must know
    rows          (variant, share kept), in the order of the table
    ready         what a model gets after its weights are loaded
    """

    load: Callable[[], nn.Module]
    architecture: Callable[[], nn.Module]
    calibration: Callable[[], list[Any]]
    example: Callable[[], Batch]
    skip: Sequence[str]
    judge: Callable[[nn.Module], Judge]
    note: str
    rows: tuple[tuple[str, float], ...]
    ready: Callable[[nn.Module], nn.Module] = nn.Module.eval


def subject(name: str) -> Subject:
    """Raises ValueError for a name that is not in SUBJECTS."""
    if name not in SUBJECTS:
        raise ValueError(f"the model must be one of {', '.join(SUBJECTS)}, got {name!r}")
    return SUBJECTS[name]()


def _minilm() -> Subject:
    import minilm
    import texts

    tokenizer = minilm.load_tokenizer()

    def judge(dense: nn.Module) -> Judge:
        reference = minilm.embed(dense, tokenizer, texts.documents())
        judged = texts.human_similarities()

        def figures(model: nn.Module) -> dict[str, Any]:
            rows = minilm.embed(model, tokenizer, texts.documents())
            cosine, span = minilm.mean_cosine(reference, rows)
            return {
                "cosine to dense": cosine,
                "cosine 95%": spoken(span),
                "Lee-50 Pearson": texts.pearson(rows.numpy(), judged),
                "Pearson 95%": spoken(texts.pearson_interval(rows.numpy(), judged)),
            }

        return figures

    variants = ("plain", "asvd", "independent", "prefix", "prefix+affine", "original")
    return Subject(
        load=minilm.load_minilm,
        architecture=minilm.architecture,
        calibration=lambda: minilm.calibration_batches(tokenizer),
        example=lambda: minilm.example(tokenizer),
        skip=minilm.SKIP,
        judge=judge,
        note="all-MiniLM-L6-v2, the 36 linears of its encoder. Calibrated on the 300 documents of "
        "lee_background.cor (the first 96 tokens of each, 28,644 in all, batches of 32, or of 16 "
        "in rows that are neither original nor named by a format), tested on the 50 of lee.cor: "
        "mean cosine to the dense embedding, and Pearson correlation of cosine similarities with "
        "human judgement; intervals by bootstrap over documents. Latency of 16 x 128 tokens.",
        rows=(
            *((variant, keep) for keep in (0.8, 0.6, 0.4) for variant in variants),
            *((format, 0.4) for format in ("kron", "tt", "blr", "hierarchical", "monarch")),
        ),
    )


def _smollm2() -> Subject:
    import smollm2

    tokenizer = smollm2.load_tokenizer()

    def judge(dense: nn.Module) -> Judge:
        tokens = smollm2.unseen_windows(tokenizer)

        def figures(model: nn.Module) -> dict[str, Any]:
            value, span = smollm2.perplexity(smollm2.losses(model, tokens))
            return {"perplexity": value, "perplexity 95%": spoken(span)}

        return figures

    variants = ("plain", "asvd", "independent", "prefix", "prefix+affine", "original")
    return Subject(
        load=smollm2.load_smollm2,
        architecture=smollm2.architecture,
        calibration=lambda: smollm2.calibration_batches(tokenizer),
        example=lambda: smollm2.example(tokenizer),
        skip=smollm2.SKIP,
        judge=judge,
        note="SmolLM2-135M-Instruct, the 210 linears of its layers, from 4-bit codes to float32. "
        f"Calibrated on the first {smollm2.N_CALIBRATION} windows of 512 tokens of "
        "lee_background.cor, tested on the first 4 of lee.cor (documents joined by newlines); "
        "intervals by bootstrap over blocks of 73 tokens. Latency of 1 x 512 tokens.",
        rows=tuple((variant, keep) for keep in (0.9, 0.8) for variant in variants),
    )


def _smollm2_mixed() -> Subject:
    import smollm2

    tokenizer, news = smollm2.load_tokenizer(), _smollm2()
    note = news.note.replace(
        f"the first {smollm2.N_CALIBRATION} windows of 512 tokens of lee_background.cor",
        f"{smollm2.N_CALIBRATION} windows of 512 tokens, two thirds of them of lee_background.cor "
        "and one of SciPy's docstrings",
    )
    return replace(news, calibration=lambda: smollm2.mixed_batches(tokenizer), note=note, rows=())


def _efficientnet() -> Subject:
    import efficientnet

    def judge(dense: nn.Module) -> Judge:
        batches = efficientnet.unseen_crops()
        reference = efficientnet.classes(dense, batches)

        def figures(model: nn.Module) -> dict[str, Any]:
            found = efficientnet.classes(model, batches)
            same, span = efficientnet.agreement(reference, found)
            return {
                "agreement": same,
                "agreement 95%": spoken(span),
                "right": "{} of {}".format(*efficientnet.accuracy(found)),
            }

        return figures

    variants = ("plain", "asvd", "independent", "prefix", "prefix+affine", "original")
    return Subject(
        load=efficientnet.load_efficientnet,
        architecture=efficientnet.architecture,
        calibration=efficientnet.calibration_batches,
        example=efficientnet.example,
        skip=efficientnet.SKIP,
        judge=judge,
        note="EfficientNet-lite0, its 1 x 1 convolutions. Calibrated on 16 random crops of each of "
        "15 pictures (10 of ImageNet, 5 of scikit-image), tested on 8 crops of each of 15 others: "
        "share of crops with the dense model's class, interval by bootstrap over pictures; and "
        "how many of the 10 labelled test pictures are right (centre crops). Latency of 8 x 224 x "
        "224.",
        rows=(("plain", 0.9), *((variant, 0.8) for variant in variants), ("original+affine", 0.8)),
    )


def _detector() -> Subject:
    import craft
    import detection
    import detector
    from scenes import make_scenes

    def architecture() -> nn.Module:
        with torch.device("meta"):
            return craft.fold_batchnorm(craft.Craft().eval())

    def ready(model: nn.Module) -> nn.Module:
        return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def judge(dense: nn.Module) -> Judge:
        scenes = make_scenes("validation", 20)

        def figures(model: nn.Module) -> dict[str, Any]:
            counts = detection.evaluate(model, scenes)
            return {
                "F1": detection.total(counts).f1,
                "F1 95%": spoken(detection.bootstrap_f1(counts)),
            }

        return figures

    return Subject(
        load=detector.load_detector,
        architecture=architecture,
        calibration=detector.calibration_batches,
        example=lambda: detector.as_input(make_scenes("validation", 1)),
        skip=list(detector.SKIP),
        judge=judge,
        note="The CRAFT text detector, batch norms folded, channels_last: F1 on 20 validation "
        "scenes. Latency of one scene, 384 x 512. Methods and shares are compared in craft.md.",
        rows=(("original", 0.25),),
        ready=ready,
    )


def _own_cnn() -> Subject:
    import own_cnn

    x, y = own_cnn.digits("train", 4000)

    def architecture() -> nn.Module:
        with torch.device("meta"):
            return own_cnn.Net().eval()

    def judge(_: nn.Module) -> Judge:
        unseen, truth = own_cnn.digits("test", 1000)

        def figures(model: nn.Module) -> dict[str, Any]:
            return {"right": own_cnn.accuracy(model, unseen, truth)}

        return figures

    return Subject(
        load=lambda: own_cnn.train(x, y),
        architecture=architecture,
        calibration=lambda: list(x[:512].split(64)),
        example=lambda: x[:64],
        skip=[],
        judge=judge,
        note="A CNN of five 3 x 3 convolutions, trained on 4,000 drawn digits by own_cnn.py: share "
        "of 1,000 digits read right, in fonts that it was not trained on. Calibrated on 512 "
        "of the training pictures. Latency of 64 pictures.",
        rows=tuple(
            (variant, 0.25)
            for variant in ("plain", "independent", "prefix", "original", *FORMATS[:4])
        ),
    )


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "own_cnn": _own_cnn,
    "minilm": _minilm,
    "smollm2": _smollm2,
    "smollm2_mixed": _smollm2_mixed,
    "efficientnet": _efficientnet,
    "detector": _detector,
}


def spoken(span: tuple[float, float]) -> str:
    """An interval in four digits."""
    return f"[{span[0]:.4g}, {span[1]:.4g}]"
