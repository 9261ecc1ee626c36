"""From a model to one whose cache holds latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from tensorlrf.compression._heads import heads_of
from tensorlrf.compression._progress import progress_bar
from tensorlrf.compression._survey import Surveyed, check_values, survey, without_skipped
from tensorlrf.compression._uncompiled import own_model
from tensorlrf.compression._working_copy import put
from tensorlrf.compression.calibration._dense_layer import dense_layer_at
from tensorlrf.compression.calibration._layer_moments import Calibration
from tensorlrf.compression.calibration.batches import call
from tensorlrf.compression.fit._factor import SAMPLES_PER_COLUMN
from tensorlrf.compression.fit._fitting import AUTO, LOSS, METRICS, OUTPUTS
from tensorlrf.compression.latent._joint import Joint, joints, ranks_within
from tensorlrf.compression.latent._recognised import Site, recognised
from tensorlrf.compression.latent._report import LatentReport, LatentRow
from tensorlrf.compression.losses._output_loss import OutputLoss, Readout
from tensorlrf.compression.modular._costs import costs_of
from tensorlrf.compression.modular._outlook import Costs
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import ArgumentError, CalibrationWarning, RankError, unknown, warn
from tensorlrf.factors import LowRank
from tensorlrf.factors.autocast import without_autocast
from tensorlrf.nn import FactoredLinear
from tensorlrf.nn.behaviour.seen import plain_of
from tensorlrf.nn.copies import copy_of, replica
from tensorlrf.nn.latent.attention import digits_of, latents_of, with_latents
from tensorlrf.nn.plain import Plain
from tensorlrf.nn.tables.ties import tie
from tensorlrf.nn.whole import check_whole


def latent_cache(
    model: nn.Module,
    calibration: Any,
    *,
    keep_cache: float | None = None,
    rank: int | None = None,
    skip: str | Sequence[str] | None = None,
    metric: str = AUTO,
    loss: str = AUTO,
    readout: Readout | None = None,
    holdout: float = 0.1,
    groups: Any = None,
    random_state: int | torch.Generator | None = 0,
    progress: bool = True,
) -> tuple[nn.Module, LatentReport]:
    """A copy of a transformer whose cache of keys and values is smaller, and a report.

    Keys K = A_k z + b_k and values V = A_v z + b_v of an attention become of one low rank, z = R x,
    and what is cached of a token are the r numbers of z, before rotary positions; keys and values
    of all cached tokens are made anew whenever they are attended to. That costs r products for each
    number of keys and values and each cached token, with every token that is generated: memory is
    saved, time is not. `generate` of transformers and its caches serve as before.

    Parameters
    ----------
    model : Module
        With attentions that hand keys and values to a cache (whatever offers `update` and
        `get_seq_length`) under the keyword `use_cache=True`, as decoders of transformers do. Keys
        are what one linear layer puts out, through a norm or not, and turned by rotary tables or
        not; values are what another one puts out, on the same argument of the attention's forward.
    calibration, holdout, groups
        Inputs, as in `apply`. The first batch also shows how keys and values are made.
    keep_cache : float, optional
        Share of the bytes of a token in the cache that may be left, in (0, 1]. Attentions get their
        ranks where the model loses least. Give this or
    rank : int, optional
        r, of every attention, up to that at which nothing is lost: the inputs of its layers, or as
        many numbers as keys and values have, whichever is less.
    skip : str or sequence of str, optional
        Globs of attentions, or of their layers, whose cache stays as it is.
    metric : {"auto", "loss", "outputs"}
        In what keys and values are to be near, as in `apply`: what an error of them costs the
        model, to second order, or relative errors of both. "auto" is "loss" where the model can be
        differentiated.
    loss, readout
        What counts of the model's outputs, as in `sensitivity`.
    random_state : int or Generator, optional
        Of the directions that are drawn for `metric="loss"`.
    progress : bool
        A bar on stderr, where that is a terminal.

    Returns
    -------
    model : Module
        The copy. Its layers of keys and values are on factors; `save`, `load` and `compress` take
        it like any other, and `export` and `densify` give its attentions an ordinary cache again.
    report : LatentReport
        Ranks, bytes of a token, and errors.

    Raises
    ------
    ArgumentError, RankError
        For an attention whose keys and values are made in another way (it is named, and why), a
        model without a cache, arguments that cannot be, and batches that the model cannot take.

    Warns
    -----
    CalibrationWarning
        Where samples are few, and where metric="loss" is asked of a model that cannot be
        differentiated.

    References
    ----------
    Chang et al. 2024, "Palu: compressing KV-cache with low-rank projection"; DeepSeek-AI 2024,
    "DeepSeek-V2" (multi-head latent attention).
    """
    _check(calibration, keep_cache, rank, metric)
    check_whole(model, "a latent cache")
    model = own_model(model)
    data = Calibration.read(calibration, model, holdout, groups=groups)
    assert data is not None
    with torch.inference_mode(False), without_autocast():
        sites, others = _sites(model, skip, data)
        for site in sites:
            for name in (site.keys, site.values):
                check_values(name, dense_layer_at(model, name).weight)
        output_loss = _output_loss(model, data, loss, readout)
        costs = _costs(model, sites, data, output_loss, metric, random_state, progress)
        found: dict[str, Joint] = {}
        with progress_bar("cache", len(sites), progress) as advance:
            for joint in joints(model, sites, data, costs):
                found[joint.site.name] = joint
                advance(joint.site.name)
        _warn_of_few(list(found.values()))
        digits = {name: _digits(one) for name, one in found.items()}
        if rank is None:
            assert keep_cache is not None
            whole = others + sum(one.numbers for one in found.values())
            energies = {name: one.energies for name, one in found.items()}
            ranks = ranks_within(energies, digits, int(keep_cache * whole + 1e-9) - others)
        else:
            ranks = _of_all(rank, found)
        small = copy_of(model)
        rows = [_put(small, found[site.name], ranks, digits) for site in sites]
    first = next(iter(found.values())).weights[0]
    lost = sum(one.lost(ranks[name]) for name, one in found.items()) if costs else None
    report = LatentReport(
        tuple(rows), others, first.element_size(), LOSS if costs else OUTPUTS, bool(data.held),
        lost, output_loss.unit if costs else "",
    )  # fmt: skip
    return small, report


# ---- arguments --------------------------------------------------------------------------------


def _check(calibration: Any, keep_cache: Any, rank: Any, metric: str) -> None:
    """Raise ArgumentError or RankError for what cannot be."""
    if calibration is None:
        raise ArgumentError(
            "calibration=None: inputs show how keys and values are made; give some batches"
        )
    if (keep_cache is None) == (rank is None):
        raise ArgumentError(
            f"keep_cache={keep_cache!r} and rank={rank!r}: give one of the two, such as "
            "keep_cache=0.5"
        )
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise RankError(f"rank={rank!r} must be an int of at least 1")
    number = isinstance(keep_cache, (int, float)) and not isinstance(keep_cache, bool)
    if keep_cache is not None and not (number and 0 < keep_cache <= 1):
        raise ArgumentError(f"keep_cache={keep_cache!r} must be a share in (0, 1], such as 0.5")
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)


def _of_all(rank: int, found: Mapping[str, Joint]) -> dict[str, int]:
    for name, joint in found.items():
        if rank > joint.full:
            raise RankError(
                f"rank={rank} is above {joint.full}, at which keys and values of {name} are what "
                "they were; give that at the most"
            )
    return dict.fromkeys(found, rank)


# ---- the model --------------------------------------------------------------------------------


def _sites(
    model: nn.Module, skip: str | Sequence[str] | None, data: Calibration
) -> tuple[list[Site], int]:
    """(the attentions to be, numbers of a token that the others cache).

    Raises ArgumentError where one is not known, or there is none.
    """
    latent = next((name for name, one in model.named_modules() if latents_of(one)), None)
    if latent is not None:
        raise ArgumentError(
            f"model: the cache of {latent} is latent already; give the model before"
        )
    all_of_it = survey(model)
    left = without_skipped(all_of_it, model, [] if skip is None else skip)
    skipped = {one.name for one in left if one.skipped}
    why = {one.name: one.reason for one in left if one.reason and not one.skipped}
    linear = [one.name for one in all_of_it if _is_linear(one)]
    sites, unknown_ones = recognised(model, linear, data.batches[0])
    if not sites and not unknown_ones:
        raise ArgumentError(
            "model hands no keys and values to a cache under use_cache=True; a latent cache is for "
            "decoders that keep one, whose `update` gives back what is kept"
        )
    for one in unknown_ones:
        own = [name for name in linear if name.startswith(f"{one.name}.")]
        if own and skipped.issuperset(own):
            continue
        for name in own:
            if name not in why:
                check_values(name, dense_layer_at(model, name).weight)
        raise ArgumentError(
            f"model: how {one.name} makes what it caches is not known: {one.why}; leave it out "
            f"with skip=[{one.name!r}]"
        )
    others, wanted = sum(one.numbers for one in unknown_ones), []
    for site in sites:
        layers = (site.keys, site.values)
        if skipped.intersection(layers):
            others += sum(dense_layer_at(model, name).shape[0] for name in layers)
            continue
        stays = next((name for name in layers if name in why), None)
        if stays is not None:
            raise ArgumentError(
                f"model: {stays} cannot be factored ({why[stays]}); leave it out with "
                f"skip=[{site.name!r}]"
            )
        wanted.append(site)
    if not wanted:
        raise ArgumentError(f"skip={skip!r} leaves no attention with a cache")
    return wanted, others


def _is_linear(one: Surveyed) -> bool:
    """Whether it may be of keys or values, or would be but for what it is made of."""
    if not one.eligible:
        return isinstance(one.module, (nn.Linear, FactoredLinear))
    plain = plain_of(one.module)
    return isinstance(plain, Plain) and not plain.axes and not one.is_table


def _output_loss(
    model: nn.Module, data: Calibration, loss: str, readout: Readout | None
) -> OutputLoss:
    output = call(replica(model), data.judging[0])
    return OutputLoss.of(loss, readout, output, bool(heads_of(model)))


def _costs(
    model: nn.Module,
    sites: Sequence[Site],
    data: Calibration,
    loss: OutputLoss,
    metric: str,
    random_state: int | torch.Generator | None,
    progress: bool,
) -> Costs:
    """What errors of keys and values cost the model; nothing where all count alike."""
    if metric == OUTPUTS:
        return {}
    names = [name for site in sites for name in (site.keys, site.values)]
    draws = generator(random_state, dense_layer_at(model, names[0]).device)
    found: Costs = {}
    try:
        with progress_bar("differentiate", None, progress) as advance:
            found = costs_of(model, names, data, loss, draws, partial(advance, ""))
    except (RuntimeError, ArgumentError):
        found = {}
    if not found and metric == LOSS:
        warn(
            "metric='loss': what errors of keys and values cost the model is not known, which "
            "cannot be differentiated; they count as by metric='outputs'",
            CalibrationWarning,
        )
    return found


def _digits(joint: Joint) -> int:
    return digits_of(joint.site.made, joint.weights[0].dtype)


def _warn_of_few(found: Sequence[Joint]) -> None:
    thin = [
        f"{one.site.keys} ({one.samples:,} samples, n = {len(one.gram):,})"
        for one in found
        if one.samples < SAMPLES_PER_COLUMN * len(one.gram)
    ]
    if thin:
        warn(
            f"calibration is thin for {thin[0]}{f' and {len(thin) - 1} more' * (len(thin) > 1)}: "
            f"with fewer than {SAMPLES_PER_COLUMN} n samples the factors fit the samples more than "
            "the data; give more batches",
            CalibrationWarning,
        )


def _put(
    model: nn.Module, joint: Joint, ranks: Mapping[str, int], digits: Mapping[str, int]
) -> LatentRow:
    """Have an attention of the copy be on factors, in place."""
    site = joint.site
    rank = ranks[site.name]
    factors = joint.factors(rank)
    _on(model, site, factors)
    tables = model.get_submodule(site.tables) if site.tables else None
    with_latents(model.get_submodule(site.name), site.made, tables)
    return LatentRow(
        site.name, rank, joint.numbers, rank + digits[site.name], *joint.errors(factors)
    )


def _on(model: nn.Module, site: Site, factors: tuple[LowRank, LowRank]) -> None:
    """Its two layers, on one right factor."""
    keys, values = (
        dense_layer_at(model, name).on(one)
        for name, one in zip((site.keys, site.values), factors, strict=True)
    )
    tie(values, keys, ("right",))
    put(model, [site.keys], keys)
    put(model, [site.values], values)
