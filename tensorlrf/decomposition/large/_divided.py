"""A tensor that is divided along one mode, and passes over its pieces."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from tensorlrf.decomposition._input import working_dtype
from tensorlrf.decomposition.large._group import Group
from tensorlrf.decomposition.large._memory import USUAL, bytes_of
from tensorlrf.decomposition.large._stored import Stored, stored
from tensorlrf.decomposition.large.freed import releases
from tensorlrf.decomposition.random_state import generator
from tensorlrf.errors import ArgumentError, ShapeError, TensorlrfError
from tensorlrf.factors import Factors

T = TypeVar("T")


class Divided:
    """A tensor that lies in pieces along one mode: in slabs of a file, or with several ranks.

    `Slabs` and `Sharded` make it; the functions of `tensorlrf.large` make it of what they are
    given.

    Parameters
    ----------
    whole : tuple of int
        Shape of the tensor.
    here : Stored
        What this process has of it.
    along : int
        The mode.
    start : int
        Where along that mode it begins.
    most : int
        What the process with most has of that mode.
    processes : ProcessGroup, optional
        Of torch.distributed, where others have the rest.
    memory_limit : int or str
        Bytes of anonymous memory that a decomposition may take here.
    """

    def __init__(
        self,
        whole: tuple[int, ...],
        here: Stored,
        along: int,
        start: int,
        most: int,
        processes: Any,
        memory_limit: int | str,
    ) -> None:
        self._shape, self._here, self._along = whole, here, along
        self._start, self._most, self._processes = start, most, processes
        self._limit = bytes_of(memory_limit)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        """As it is stored."""
        return self._here.dtype

    @property
    def along(self) -> int:
        """The mode along which it is divided."""
        return self._along

    @property
    def own(self) -> range:
        """What of that mode this process has."""
        return range(self._start, self._start + self._here.shape[self._along])

    @property
    def memory_limit(self) -> int:
        """In bytes."""
        return self._limit

    def __repr__(self) -> str:
        shape = "x".join(map(str, self._shape))
        dtype = str(self.dtype).removeprefix("torch.")
        own = f"{self.own.start} to {self.own.stop}"
        return f"{type(self).__name__}({shape}, {dtype}, {own} along mode {self._along} here)"


class Slabs(Divided):
    """A tensor on one machine that is read in slabs, of which one at a time is in memory.

    Parameters
    ----------
    tensor : path, array, slice or other
        The path of a .npy file, which is mapped; a numpy array, mapped or not; a slice of a
        safetensors file (`safe_open(path, "pt").get_slice(name)`); or anything with `shape`,
        `dtype` and slicing, such as a dataset of h5py or an array of zarr.
    along : int, optional
        The mode along which slabs are cut. By default the one of more than one entry whose steps in
        the file are longest, the first in C order, so that a slab is one piece of the file.
    memory_limit : int or str
        Bytes of anonymous memory that a decomposition may take, above what the process has; or a
        text such as "512MB". Pages of a mapped file belong to the file and do not count.

    Raises
    ------
    ArgumentError, ShapeError
        For what cannot be sliced, integers, less than two modes, a mode that is none.
    MissingFileError, FileError, FileFormatError
        For a path.

    Examples
    --------
    >>> import numpy
    >>> slabs = tensorlrf.large.Slabs(numpy.ones((40, 30, 20)), memory_limit="100MB")
    >>> slabs.shape, slabs.along, slabs.memory_limit
    ((40, 30, 20), 0, 100000000)
    """

    def __init__(
        self, tensor: Any, *, along: int | None = None, memory_limit: int | str = USUAL
    ) -> None:
        here = stored(tensor)
        if 0 in here.shape:
            raise ShapeError(f"tensor has shape {here.shape}, which holds no element")
        longest = next((k for k in here.order if here.shape[k] > 1), 0)
        mode = longest if along is None else checked_mode(along, len(here.shape))
        most = here.shape[mode]
        super().__init__(here.shape, here, mode, 0, most, None, memory_limit)


class Sharded(Divided):
    """A tensor of which every rank of a process group has a piece along one mode.

    Pieces are of any size, none included. All ranks make it, and all make the same calls with it.

    Parameters
    ----------
    tensor : DTensor, or what `Slabs` takes
        A DTensor that is sharded along one mode; or the piece of this rank, in memory or in a file.
    along : int, optional
        The mode along which the pieces lie one after the other, 0 by default. A DTensor knows it.
    group : ProcessGroup, optional
        Of torch.distributed, all ranks by default. A DTensor knows it.
    memory_limit : int or str
        As of `Slabs`: for sums, factors and work on this rank, its piece not counted.

    Raises
    ------
    ArgumentError, ShapeError
        For a DTensor that is replicated, partial, or sharded more than once; pieces that do not fit
        each other. On all ranks, where it is so on one.

    Examples
    --------
    With ``torchrun --nproc-per-node 2``, and ``rows`` the part of a rank::

        tensor = tensorlrf.large.Sharded(rows, along=0)
        factors = tensorlrf.large.cp(tensor, 16)
    """

    def __init__(
        self,
        tensor: Any,
        *,
        along: int | None = None,
        group: Any = None,
        memory_limit: int | str = USUAL,
    ) -> None:
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            raise ArgumentError(
                "Sharded is of a process group; call torch.distributed.init_process_group first, "
                "or use Slabs for a tensor on one machine"
            )
        if is_dtensor(tensor):
            if along is not None or group is not None:
                raise ArgumentError("a DTensor knows along= and group=; leave them out")
            tensor, along, group = _local_of(tensor)
        elif group is None:
            group = torch.distributed.group.WORLD
        local, wrong = None, ""
        try:
            local = stored(tensor)
            mode = checked_mode(0 if along is None else along, len(local.shape))
        except TensorlrfError as error:
            wrong = str(error)
        device = torch.device("cpu") if local is None else local.device
        talk = Group(group, device)
        talk.check_all(wrong)
        assert local is not None
        others = (*local.shape[:mode], *local.shape[mode + 1 :])
        talk.check_agreed(
            f"pieces along mode {mode} that are {list(others)} along the others, {local.dtype}"
        )
        counts = talk.counts(local.shape[mode])
        whole = (*local.shape[:mode], sum(counts), *local.shape[mode + 1 :])
        if 0 in whole:
            raise ShapeError(f"tensor has shape {whole}, which holds no element")
        start = sum(counts[: talk.rank])
        super().__init__(whole, local, mode, start, max(counts), group, memory_limit)


def is_dtensor(value: Any) -> bool:
    """Whether it is one; torch.distributed.tensor is imported by whoever has one."""
    return isinstance(value, Tensor) and type(value).__name__ == "DTensor"


def _local_of(tensor: Any) -> tuple[Tensor, int, Any]:
    """The piece of this rank, the mode, and the group, of a DTensor."""
    from torch.distributed.tensor import Replicate, Shard

    placements = tuple(tensor.placements)
    shards = [k for k, p in enumerate(placements) if type(p) is Shard]
    rest = [p for p in placements if type(p) not in (Shard, Replicate)]
    remedy = "call redistribute(placements=...) with one Shard(mode), and Replicate() for the rest"
    if rest or len(shards) > 1:
        what = "partial or interleaved" if rest else "sharded more than once"
        raise ArgumentError(f"tensor is a DTensor that is {what}, {list(placements)}; {remedy}")
    if not shards:
        raise ArgumentError(
            f"tensor is a DTensor that every rank has whole, {list(placements)}; pass "
            f"tensor.to_local() to a function for tensors in memory, or {remedy}"
        )
    (at,) = shards
    mode = int(placements[at].dim) % tensor.ndim
    return tensor.to_local().detach(), mode, tensor.device_mesh.get_group(at)


def checked_mode(along: Any, order: int) -> int:
    """Counted from the front. Raises ArgumentError for what is no mode."""
    if isinstance(along, bool) or not isinstance(along, int) or not -order <= along < order:
        raise ArgumentError(
            f"along={along!r} is no mode of a tensor of order {order}; modes are 0 to {order - 1}, "
            f"or {-order} to -1 from the end"
        )
    return along % order


def divided(tensor: Any, along: int | None, memory_limit: int | str | None) -> Divided:
    """What a function is given, as a divided tensor."""
    if isinstance(tensor, Divided):
        for name, value in (("along", along), ("memory_limit", memory_limit)):
            if value is not None:
                raise ArgumentError(
                    f"{name}={value!r} goes where the tensor is divided; give it to "
                    f"{type(tensor).__name__}(...)"
                )
        return tensor
    limit = USUAL if memory_limit is None else memory_limit
    if is_dtensor(tensor):
        return Sharded(tensor, along=along, memory_limit=limit)
    return Slabs(tensor, along=along, memory_limit=limit)


class Reading:
    """Passes over a divided tensor for one decomposition, and what they cost.

    Pieces come in the working dtype, over `scale`, their modes in the order `axes`: the divided
    mode first, then the others as they lie in memory.

    order   of the modes as they lie in memory, the longest steps first
    passes  over the data so far
    group   what ranks tell each other, with the bytes of that
    scale   a power of four near the largest entry, where that is far from one
    """

    def __init__(self, tensor: Divided) -> None:
        self.tensor, here = tensor, tensor._here
        # Pieces of several ranks may lie in memory each in a way of its own.
        self.order = here.order if tensor._processes is None else tuple(range(len(here.shape)))
        self.axes = (tensor.along, *(k for k in self.order if k != tensor.along))
        self.dtype = working_dtype(tensor.dtype)
        self.device = here.device
        self.group = Group(tensor._processes, here.device)
        self.limit = tensor.memory_limit
        self.scale = 1.0
        self.passes = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole, modes in the order `axes`."""
        return tuple(self.tensor.shape[k] for k in self.axes)

    @property
    def own(self) -> slice:
        """What this process has of the first of `axes`."""
        return slice(self.tensor.own.start, self.tensor.own.stop)

    @property
    def count(self) -> int:
        """How many of them."""
        return len(self.tensor.own)

    @property
    def most(self) -> int:
        """How many the process with most has."""
        return self.tensor._most

    @property
    def row(self) -> int:
        """Entries of a piece that has one of the divided mode."""
        return math.prod(self.shape[1:])

    def row_bytes(self, axes: Sequence[int] | None = None) -> int:
        """Memory of its own that a row of a piece takes as it is read."""
        here = self.tensor._here
        raw = self.row * here.dtype.itemsize if here.copies else 0
        long = [k for k in here.order if here.shape[k] > 1]  # the others lie anywhere
        lies = [k for k in axes or self.axes if here.shape[k] > 1] == long
        whole = here.dtype == self.dtype and self.scale == 1.0 and lies
        return raw + (0 if whole else self.row * self.dtype.itemsize)

    def raw(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """A pass over the data as it is stored: where a piece lies in the divided mode, and it."""
        self.passes += 1
        releases()[1]()  # what is left over of other sizes would count beside this pass
        for start in range(0, self.count, rows):
            stop = min(start + rows, self.count)
            piece = self.tensor._here.piece(self.tensor.along, start, stop)
            yield slice(start, stop), piece

    def pieces(
        self, rows: int, axes: Sequence[int] | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """A pass: rows of what this process has (counted from its first), and the piece;
        contiguous, and not to be changed."""
        order = tuple(axes or self.axes)
        for own, piece in self.raw(rows):
            turned = piece.permute(order)
            work = turned.to(self.dtype).contiguous()
            if self.scale != 1.0:
                copied = work.data_ptr() != piece.data_ptr()
                work = work.div_(self.scale) if copied else work / self.scale
            yield own, work

    def back(self) -> list[int]:
        """Where in `axes` each mode of the tensor stands."""
        return [self.axes.index(k) for k in range(len(self.axes))]

    def agree(self, call: str, **arguments: Any) -> None:
        """All ranks make the same call; ArgumentError on all of them where they do not."""
        if self.group.processes is not None:
            arguments["memory_limit"] = self.limit
            told = ", ".join(f"{name}={_told(value)}" for name, value in arguments.items())
            self.group.check_agreed(f"{call}({told})")

    def together(self, plan: Callable[[], T]) -> T:
        """What `plan` gives; where it raises an ArgumentError on one rank, all raise it."""
        if self.group.processes is None:
            return plan()
        wrong = ""
        try:
            made = plan()
        except ArgumentError as error:
            wrong = str(error)
        self.group.check_all(wrong)
        return made

    def generator(self, random_state: Any) -> torch.Generator:
        """That of every rank, with one seed."""
        own = generator(random_state, self.device)
        if random_state is None and self.group.size > 1:
            own.manual_seed(self.group.first(own.initial_seed() % 2**62))
        return own


def _told(value: Any) -> str:
    """A value in words that are the same where it is."""
    if isinstance(value, torch.Generator):
        return f"a Generator in the state {_checksum(value.get_state())}"
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of checksum {_checksum(value)}"
    if isinstance(value, Factors):
        return f"{type(value).__name__} of {_told(tuple(value.tensors().values()))}"
    if callable(value):
        return "a callable"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_told, value))})"
    return repr(value)


def _checksum(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()[:12]
