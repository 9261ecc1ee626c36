"""`Moments`: what calibration has summed of the inputs of every layer, as a value."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tensorlrf.compression._render import Header, Table
from tensorlrf.compression.moments._file import InFile, read, write
from tensorlrf.compression.moments._kept import Added, Kept
from tensorlrf.compression.moments._layer import CalibratedLayer
from tensorlrf.compression.moments._rows import both, by_name
from tensorlrf.files.arguments import PathLike, as_path
from tensorlrf.files.replace import replacing
from tensorlrf.files.safetensors import bytes_of

if TYPE_CHECKING:
    from rich.console import Group

HEADER: Header = (
    ("layer", "left"),
    ("weight", "left"),
    ("inputs", "right"),
    ("n", "right"),
    ("moments", "left"),
)


@dataclass(frozen=True)
class Moments:
    """First and second moments of the inputs of a model's layers, of `tensorlrf.calibrate`.

    They are kept as sums. Inputs are those that the given model has, none of whose layers is
    compressed; a fit to them is that of ``target="independent"``. Moments of the same model add up,
    ``a + b``, over runs and machines, exactly but for the rounding of float64, and in either order
    alike; sketches add up within their bound. In a file, or a sum of files, moments of a layer are
    read when they are asked for.

    Parameters
    ----------
    layers : tuple of CalibratedLayer
        In the order of the model.
    batches : int
        That were summed up.
    kept : Kept
        Where the sums are: in memory, in a file, or in several that are added when they are read.
        `tensorlrf.calibrate`, `load` and ``a + b`` make it.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
    >>> one = tensorlrf.calibrate(model, [torch.rand(256, 64)])
    >>> two = one + tensorlrf.calibrate(model, [torch.rand(128, 64)])
    >>> two.batches, two.layer("0").count
    (2, 384)
    >>> small, report = tensorlrf.compress(model, keep_params=0.5, moments=two)
    """

    layers: tuple[CalibratedLayer, ...]
    batches: int
    kept: Kept = field(repr=False, compare=False)

    def layer(self, name: str) -> CalibratedLayer:
        """The row of a layer. Raises KeyError."""
        return by_name(self.layers)[name]

    @property
    def n_bytes(self) -> int:
        """Of all sums, in a file."""
        own = [row for row in self.layers if row.count and not row.like]
        return sum(row.n_bytes for row in own)

    def __add__(self, other: Moments) -> Moments:
        """Of all batches of both.

        Raises ArgumentError where they are of different models or layers, or kept in different
        forms, naming the first layer.
        """
        if not isinstance(other, Moments):
            return NotImplemented
        one, two = by_name(self.layers), by_name(other.layers)
        rows, kept = both(one, two), Added(((self.kept, one), (other.kept, two)))
        return Moments(tuple(rows.values()), self.batches + other.batches, kept)

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Write them to a file, a layer at a time; read it back with `load`.

        Parameters
        ----------
        path : str or path
        overwrite : bool
            Whether a file that is there may be replaced.

        Raises
        ------
        FileError
            Where `path` exists or cannot be written.
        """
        with replacing(path, overwrite=overwrite) as part:
            write(part, self.batches, self.layers, self.kept)

    @classmethod
    def load(cls, path: PathLike) -> Moments:
        """What `save` or `tensorlrf calibrate` wrote.

        The header is read; the moments of a layer are, and their checksums looked at, when they are
        asked for: the file has to stay.

        Parameters
        ----------
        path : str or path

        Raises
        ------
        MissingFileError, FileError
            Where there is no file, or the system refuses it.
        FileFormatError
            For a file that is damaged, foreign, or from a later version.
        """
        batches, rows, kept = read(as_path(path))
        return cls(rows, batches, kept)

    def checksum(self) -> str:
        """By which they are known again: of a file, that of its header and so of all in it."""
        if isinstance(self.kept, InFile):
            return self.kept.seal
        digest = hashlib.blake2b(repr((self.layers, self.batches)).encode(), digest_size=16)
        for row in self.layers:
            for one in self.kept.read(row) if row.count and not row.like else ():
                for name in sorted(tensors := one.tensors()):
                    digest.update(bytes_of(tensors[name].contiguous()))
        return digest.hexdigest()

    def to_json(self) -> str:
        """What there is of each layer, as JSON text, without the moments."""
        rows = [
            {
                "name": row.name,
                "shape": list(row.weight.shape),
                "groups": row.groups,
                "count": row.count,
                "columns": row.columns,
                "form": row.form,
                "like": row.like,
            }
            for row in self.layers
        ]
        return json.dumps({"batches": self.batches, "bytes": self.n_bytes, "layers": rows})

    def __str__(self) -> str:
        return str(self._table())

    def __rich__(self) -> Group:
        return self._table().__rich__()

    def _table(self) -> Table:
        rows = [
            (
                row.name,
                "x".join(map(str, row.weight.shape)),
                f"{row.count:,}",
                f"{row.columns:,}",
                f"as {row.like}" if row.like else row.form if row.count else "none",
            )
            for row in self.layers
        ]
        title = f"moments of {self.batches:,} batches, {self.n_bytes:,} bytes"
        return Table(title, HEADER, rows, ())
