"""torchao is told of factored layers, once."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from tensorlrf.errors import MissingExtraError, UnsupportedError
from tensorlrf.torchao._layers import HOLDERS, quantised

try:
    from torchao.quantization import quant_api
except ModuleNotFoundError as error:
    if error.name is None or not error.name.startswith("torchao"):
        raise
    raise MissingExtraError(
        "tensorlrf.torchao needs torchao: pip install 'tensorlrf[torchao]'"
    ) from error

_OURS = "_of_tensorlrf"


def register() -> None:
    """Have `quantize_` act on factored layers; where it does, nothing is done.

    torchao has no place to register a kind of layer at: its handlers, one for each configuration,
    are given what its filter lets through. Both are widened.
    """
    api: Any = quant_api
    try:
        quantize_, is_linear = api.quantize_, api._is_linear
        handlers: dict[Any, Any] = api._QUANTIZE_CONFIG_HANDLER
        known = is_linear in quantize_.__defaults__
    except (AttributeError, TypeError) as error:
        raise UnsupportedError(
            "this version of torchao keeps its filter and its handlers elsewhere than 0.18 does "
            f"({error}), so that its quantize_ cannot be told of factored layers; call quantize_ "
            "on tensorlrf.export(model)"
        ) from error
    if hasattr(is_linear, _OURS) or not known:
        return
    for config, handler in list(handlers.items()):
        handlers[config] = _handling(handler)
    wider = api._is_linear = _letting_through(is_linear)
    quantize_.__defaults__ = tuple(
        wider if default is is_linear else default for default in quantize_.__defaults__
    )


def _letting_through(is_linear: Any) -> Any:
    """torchao's filter, which lets factored layers through as well."""

    @functools.wraps(is_linear)
    def wider(module: nn.Module, *args: Any) -> bool:
        return isinstance(module, HOLDERS) or bool(is_linear(module, *args))

    setattr(wider, _OURS, True)
    return wider


def _handling(handler: Any) -> Any:
    """A handler of torchao that knows factored layers."""

    @functools.wraps(handler)
    def transform(module: nn.Module, config: Any, **options: Any) -> Any:
        if isinstance(module, HOLDERS):
            return quantised(module, functools.partial(handler, config=config), options)
        return handler(module, config, **options)

    return transform
