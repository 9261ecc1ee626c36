# Written by `make generate`, from the signatures of the decompositions.

from dataclasses import dataclass

from tensorlrf.decomposition.config import Method, Structured

@dataclass(frozen=True, kw_only=True)
class SVD(Method):
    """Truncated SVD, as a method of `compress`.

    Options of the decomposition serve fits without inputs.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    solver : str
        "exact": the SVD; "eigh": eigenvectors of the Gram of the short side, in float64; "krylov":
        a block Krylov space, with as many products as it takes until the residual is estimated to
        exceed the least possible one by no more than a thousandth of it, or else the exact way;
        "randomized": a sketch with a given number of power iterations; "auto": for a rank the one
        of krylov and exact that should take less time, by a measured cost model, exact where a
        graph is kept and for `error`. Exact means eigh below float64. With `mask` or `weights`
        "auto" is alternating least squares over what is known, row by row; "em" imputes what is
        hidden, and draws what counts less to the model, before each sweep.
    n_power_iter, n_oversample : int
        Of the randomised way: refused with another solver, and unread in a config of one.
    metric : {"full", "diagonal", "identity"}
        With calibration: "full", the second moments of the inputs, so that the error of the outputs
        is least; "diagonal", columns scaled by the fourth root of their mean square, the
        activation-aware SVD (with alpha = 1/2); "identity", the plain SVD.
    gates : {"together", "apart", "auto"}
        Of a matrix of an LSTM or a GRU, whose rows are its gates: "together", one low rank for all;
        "apart", one for each, of ranks that share out the parameters of that one (a
        `BlockLowRank`); "auto", apart where the squared error of the outputs, on inputs held out
        where there are some, is less by a twentieth. No other layer has gates. With
        metric="full".

    References
    ----------
    Yuan et al. 2023, "ASVD".

    Examples
    --------
    >>> print(tensorlrf.SVD(metric="diagonal"))
    svd(metric=diagonal)
    """

    solver: str = "auto"
    n_power_iter: int = 8
    n_oversample: int = 10
    metric: str = "full"
    gates: str = "together"

@dataclass(frozen=True, kw_only=True)
class Tucker(Method):
    """Tucker-2 on the channels of a convolution, as a method of `compress`; a matrix gets its SVD.

    Of the options of the decomposition n_iter_max and tol alone serve fits to inputs.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    solver : str
        "hosvd": each factor from the whole tensor (De Lathauwer et al. 2000a); "st_hosvd": from
        what earlier factors left (Vannieuwenhoven et al. 2012); "hooi": from there, sweeps of
        higher-order orthogonal iteration, which never raise the error (De Lathauwer et al. 2000b);
        "randomized": st_hosvd with sketched ranges (Minster et al. 2020). With `mask` or `weights`
        "hooi" alternates least squares over what is known, each factor row by row (it imputes for
        a rank above 64, or a core of more than 1024 entries); "em" imputes what is hidden before
        each sweep.
    n_iter_max : int, optional
        Most sweeps of hooi, 50 by default; with `gram`, most rounds, 50 by default; with `mask` or
        `weights`, most sweeps, 500 by default.
    tol : float, optional
        hooi stops when a sweep lowers the error by no more than this share of it, 1e-5 by default;
        with `gram`, `mask` or `weights` likewise, by default when more would gain little.
    n_power_iter, n_oversample : int
        Of the randomised way: refused with another solver, and unread in a config of one.
    rank_shares : pair of float
        Relative sizes of r_out / O and r_in / I, where a share decides the ranks.

    References
    ----------
    Kim et al. 2016.

    Examples
    --------
    >>> tensorlrf.Tucker(rank=(16, 8)).rank
    (16, 8)
    """

    solver: str = "hooi"
    n_iter_max: int | None = None
    tol: float | None = None
    n_power_iter: int = 2
    n_oversample: int = 10
    rank_shares: tuple[float, float] = (0.7, 1.0)

@dataclass(frozen=True, kw_only=True)
class CP(Method):
    """CP of a convolution, as a method of `compress`; a matrix gets its SVD.

    Of the options n_iter_max, tol, init and n_restarts serve fits to inputs.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    n_iter_max : int, optional
        Sweeps over all modes, in total for each start, 100 by default; a Gauss-Newton step counts
        for two. With `gram`, sweeps in its metric, 100 by default.
    init : str, CPFactors or tuple
        "random", "svd" (leading singular vectors of the unfoldings; random columns where the rank
        exceeds n_k), "auto" (for Gauss-Newton steps an SVD start and a random one, of which the
        better after a few of both goes on; else random), or the start itself as CPFactors or
        (weights, factors), whose scale is of no consequence: it is fitted first. A matrix starts at
        its truncated SVD, which is optimal.
    tol : float, optional
        Stop when the true relative error falls by less than this share of itself a sweep, 1e-5 by
        default; judged every ten sweeps. A step of Gauss-Newton must gain ten times that, judged
        every five. 0 makes all sweeps, and looks at the error only at the end unless there is a
        callback. With `gram` judged after every sweep, by default when more would gain little.
    solver : str
        "als": alternating least squares with a dimension tree and an annealed proximal ridge.
        "gauss-newton": damped steps in all factors at once on the tensor compressed to its leading
        directions, then sweeps on the tensor where that left something out. It passes the swamps of
        "als", and a ridge that falls with the error keeps terms from growing and cancelling.
        "auto": that where steps are cheap (at most 512 unknowns, as rank 14 of 200 x 200 x 200) and
        the start is not given, else "als".
        "cprand": randomised least squares on a mixed sketch, "leverage": on fibres drawn by the
        leverage of the model so far; then at most ten exact sweeps. With `mask` or `weights`
        "als" solves for each row by the entries seen in its slice (at ranks above 64 it imputes
        them); "em" imputes what is hidden before each sweep.
    n_samples : int, optional
        "cprand" and "leverage" only: sampled rows of a least-squares system (default from the
        rank).
    n_restarts : int
        Independent starts, of which the best at their end is returned; small ones run side by side.

    References
    ----------
    Lebedev et al. 2015.

    Examples
    --------
    >>> print(tensorlrf.CP(n_restarts=3))
    cp(n_restarts=3)
    """

    n_iter_max: int | None = None
    init: str = "auto"
    tol: float | None = None
    solver: str = "auto"
    n_samples: int | None = None
    n_restarts: int = 1

@dataclass(frozen=True, kw_only=True)
class TT(Structured):
    """Trains, as a method of `compress`.

    A TT-matrix of a linear weight; of a convolution the train of its modes, which runs as a
    convolution along each axis between two pointwise ones.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    row_sizes, column_sizes : sequence of int, optional
        The m_k and n_k, equally many; those not given are balanced factorisations, padded where a
        side has none (see `mode_sizes`).
    order : int, optional
        How many cores, by default such that m_k and n_k are near 12, two at least.
    n_iter_max : int, optional
        Most sweeps with `gram`, 100 by default.
    tol : float, optional
        With `gram`, stop when a sweep lowers the error by no more than this share of it; by default
        when more sweeps would gain little.

    Examples
    --------
    >>> print(tensorlrf.TT(order=3))
    tt(order=3)
    """

    row_sizes: tuple[int, ...] | None = None
    column_sizes: tuple[int, ...] | None = None
    order: int | None = None
    n_iter_max: int | None = None
    tol: float | None = None

@dataclass(frozen=True, kw_only=True)
class TR(Structured):
    """A tensor ring of the digits of rows and columns, as a method of `compress`.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    sizes : ((m_0, ...), (n_0, ...)), optional
        Two digits each by default.
    init : str
        "svd": successive truncated SVDs (algorithm 1); "random": Gaussian cores.
    mode : int
        The core with which "svd" begins: the ring is cut before it. A negative one counts from the
        end. Which is best depends on `tensor`: the first SVD shares its rank out over two bonds.
    n_iter_max : int, optional
        Most sweeps, 100 by default.
    tol : float, optional
        Stop when a sweep lowers the error by no more than this share of it; by default 1e-5, and
        with `gram` where more sweeps would gain little.

    Examples
    --------
    >>> tensorlrf.TR(sizes=[[8, 4], [6, 5]]).sizes
    ((8, 4), (6, 5))
    """

    sizes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    init: str = "svd"
    mode: int = 0
    n_iter_max: int | None = None
    tol: float | None = None

@dataclass(frozen=True, kw_only=True)
class Kron(Structured):
    """A sum of Kronecker products, as a method of `compress`.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    shapes : ((m1, n1), (m2, n2)), optional
        Searched for each layer, by its error at the share, where they are not given.
    solver : str
        Of the SVD of the rearrangement, as for `svd`; "auto" looks for an `error` at few terms
        first where that has over 1024 rows and columns.
    n_iter_max : int, optional
        Most sweeps with `gram`, 200 by default.
    tol : float, optional
        With `gram` they stop when one lowers the error by no more than this share of it; by default
        when more of them would gain little.
    n_power_iter, n_oversample : int
        Of the randomised way: refused with another solver, and unread in a config of one.

    Examples
    --------
    >>> tensorlrf.Kron(shapes=[[2, 4], [8, 8]]).shapes
    ((2, 4), (8, 8))
    """

    shapes: tuple[tuple[int, int], tuple[int, int]] | None = None
    solver: str = "auto"
    n_iter_max: int | None = None
    tol: float | None = None
    n_power_iter: int = 8
    n_oversample: int = 10

@dataclass(frozen=True, kw_only=True)
class BLR(Structured):
    """Blocks of low rank, as a method of `compress`.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    block : int or pair of int, optional
        Rows and columns of a block; searched for each layer by default.
    dense_blocks : bool
        Whether a block whose rank would cost as much as its entries is stored as it is.
    n_iter_max : int, optional
        With `gram`, most sweeps over the blocks, 200 by default.
    tol : float, optional
        With `gram`, stops when a sweep lowers the squared error by no more than this share of it;
        by default when more sweeps would gain little.

    Examples
    --------
    >>> print(tensorlrf.BLR(block=64))
    blr(block=64)
    """

    block: int | tuple[int, int] | None = None
    dense_blocks: bool = True
    n_iter_max: int | None = None
    tol: float | None = None

@dataclass(frozen=True, kw_only=True)
class Hierarchical(Structured):
    """A tree of blocks, as a method of `compress`.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    leaf : int
        Blocks with a side of at most this are not cut.
    admissible : str or callable
        "weak": blocks off the diagonal of their level, which then are never cut (HODLR); "strong":
        blocks that do not touch the diagonal, not even with a corner; "all": every block, for a
        matrix without an order of rows and columns; or a function (row, rows, column, columns) ->
        bool.
    n_iter_max : int, optional
        With `gram`, most sweeps over the blocks, 200 by default.
    tol : float, optional
        With `gram`, stops when a sweep lowers the squared error by no more than this share of it;
        by default when more sweeps would gain little.

    Examples
    --------
    >>> print(tensorlrf.Hierarchical(leaf=32))
    hierarchical(leaf=32)
    """

    leaf: int = 64
    admissible: str = "weak"
    n_iter_max: int | None = None
    tol: float | None = None

@dataclass(frozen=True, kw_only=True)
class Monarch(Structured):
    """A Monarch matrix, as a method of `compress`.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    blocks : int or (Q, K), optional
        By default divisors of m and n near their roots, or the rounded roots where there are none.
    n_iter_max : int, optional
        With `gram`, most sweeps over the blocks, 200 by default.
    tol : float, optional
        With `gram`, stops when a sweep lowers the squared error by no more than this share of it;
        by default when more sweeps would gain little.

    Examples
    --------
    >>> print(tensorlrf.Monarch(blocks=(8, 4)))
    monarch(blocks=[8, 4])
    """

    blocks: int | tuple[int, int] | None = None
    n_iter_max: int | None = None
    tol: float | None = None

@dataclass(frozen=True, kw_only=True)
class Blast(Structured):
    """A grid of blocks with shared bases, as a method of `compress`.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    blocks : int or (p, q), optional
        By default 4, less for fewer than 16 rows or columns.
    n_iter_max : int, optional
        Most sweeps, 100 by default; with `gram` as many again, by default 200.
    tol : float, optional
        Stops when a sweep lowers the error by no more than this share of it, 1e-4 by default; with
        `gram` when more sweeps would gain little.

    Examples
    --------
    >>> print(tensorlrf.Blast(blocks=4))
    blast(blocks=4)
    """

    blocks: int | tuple[int, int] | None = None
    n_iter_max: int | None = None
    tol: float | None = None

@dataclass(frozen=True, kw_only=True)
class GroupReduce(Structured):
    """Bands of rows of an embedding by token frequency, as a method of `compress`.

    Frequencies are those of the tokens of the calibration, rare ones drawn towards an even share;
    with a head on the same table the error of the head counts as well.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    bands : int
        The most of them.

    Examples
    --------
    >>> print(tensorlrf.GroupReduce(bands=2))
    group_reduce(bands=2)
    """

    bands: int = 4

@dataclass(frozen=True, kw_only=True)
class Interpolative(Method):
    """Some rows or columns of the weight and the others as sums of them, as a method of `compress`.

    Convolutions with groups have none.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    axis : {"columns", "rows"}, optional
        What is kept: by default columns of a matrix, rows of the weight of a layer, which computes
        the kept outputs as they were and the others from these.
    solver : {"auto", "exact", "randomized"}
        How pivots are found: "exact", by QR with column pivots; "randomized", by that of a few
        random sums of the rows, for a rank; "auto", so where the matrix is large and the rank small
        beside its sides.

    Examples
    --------
    >>> print(tensorlrf.Interpolative(axis="columns"))
    interpolative(axis=columns)
    """

    axis: str | None = None
    solver: str = "auto"

@dataclass(frozen=True, kw_only=True)
class CUR(Method):
    """Columns and rows of the weight and a core between them, as a method of `compress`.

    Convolutions with groups have none.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    sampling : {"pivots", "deim", "leverage", "cross"}
        How columns and rows are chosen. "pivots": the columns as those of an `interpolative`
        decomposition, by QR or by a sketch, and then rows that span best what these columns have of
        the matrix. "deim": one after the other by the leading singular
        vectors, each where interpolation at those before it is worst. "leverage": drawn by their
        shares in these vectors, without replacement. These three have the core that fits
        best, U = C^+ W R^+. "cross": a part W[I, J] of nearly the largest volume, and U its
        inverse, so that the columns and rows are reproduced.

    Examples
    --------
    >>> print(tensorlrf.CUR(sampling="leverage"))
    cur(sampling=leverage)
    """

    sampling: str = "pivots"

@dataclass(frozen=True, kw_only=True)
class DictionaryLearning(Method):
    """Rows made of a few atoms each, as a method of `compress`.

    The rank is the number of atoms; each code counts as its value and its place. Linear layers
    only.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    nonzeros : int, optional
        How many atoms a row takes, by default half of them.
    n_iter_max : int, optional
        Most sweeps, 30 by default.
    tol : float, optional
        Stops when a sweep lowers the error by no more than this share of it; by default when more
        would gain little.

    Examples
    --------
    >>> print(tensorlrf.DictionaryLearning(nonzeros=4))
    dictionary(nonzeros=4)
    """

    nonzeros: int | None = None
    n_iter_max: int | None = None
    tol: float | None = None

@dataclass(frozen=True, kw_only=True)
class LPLR(Method):
    """A low rank whose factors are in few bits, as a method of `compress`.

    Codes count as parameters, so that ranks under `keep_params=` are about those of `SVD`, at a
    quarter of the bytes or fewer; `keep_bytes=` counts codes and scales. Linear layers only.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    codes : {"int8", "int4", "fp8"}
        Of both factors.
    group : int, optional
        How many numbers have one scale, along the m of the left and the n of the right factor, both
        of which it must divide; by default each column and row has one.
    n_iter_max : int, optional
        Most sweeps, 30 by default.
    tol : float, optional
        Stops when a sweep lowers the error by no more than this share of it; by default when more
        would gain little.

    Examples
    --------
    >>> print(tensorlrf.LPLR(codes="int4"))
    lplr(codes=int4)
    """

    codes: str = "int8"
    group: int | None = None
    n_iter_max: int | None = None
    tol: float | None = None

@dataclass(frozen=True, kw_only=True)
class LowRankPlusSparse(Method):
    """A low rank, and the entries that count most beside it, as a method of `compress`.

    Each entry counts as its value and its two coordinates, in parameters and bytes. Linear layers
    only.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    sparsity : float, optional
        Share of entries that are zero in the sparse part, in (0, 1); 0.95 by default.
    pattern : {"top", "2:4", "random"}
        Which entries are kept: the largest ones, in a metric by what each alone adds to the loss;
        the two largest of each four inputs; or drawn ones, whatever W is, as for training.
    n_iter_max : int, optional
        Most sweeps, 30 by default.
    tol : float, optional
        Stops when a sweep lowers the error by no more than this share of it; by default when more
        would gain little.

    Examples
    --------
    >>> print(tensorlrf.LowRankPlusSparse(sparsity=0.98))
    low_rank_plus_sparse(sparsity=0.98)
    """

    sparsity: float | None = None
    pattern: str = "top"
    n_iter_max: int | None = None
    tol: float | None = None

@dataclass(frozen=True, kw_only=True)
class BlockTerms(Method):
    """Block terms of the channels of a convolution, as a method of `compress`.

    The convolution in the middle has as many groups as there are terms. A matrix gets its SVD,
    which no sum of matrices of low rank is better than.

    Parameters
    ----------
    rank : int, tuple or float, optional
        An int; a tuple where the format has several; or a float, the share of the weight's
        parameters to keep at most. Of a convolution with groups: of each group.
    error : float, optional
        Largest relative error, of the outputs where there is calibration, else of the weight.
    n_terms : int
        Terms.
    n_iter_max : int, optional
        Most sweeps of a start, 200 by default; with `gram`, most rounds, 50 by default.
    tol : float, optional
        Stop when a sweep lowers the relative error by no more than this share of it, 1e-6 by
        default; with `gram`, where more would gain little.
    n_restarts : int
        Random starts, of which the best goes on after some sweeps.

    References
    ----------
    Chen et al. 2018.

    Examples
    --------
    >>> print(tensorlrf.BlockTerms(n_terms=4))
    block_term(n_terms=4)
    """

    n_terms: int = 2
    n_iter_max: int | None = None
    tol: float | None = None
    n_restarts: int = 1

__all__ = [
    "BLR",
    "CP",
    "CUR",
    "LPLR",
    "SVD",
    "TR",
    "TT",
    "Blast",
    "BlockTerms",
    "DictionaryLearning",
    "GroupReduce",
    "Hierarchical",
    "Interpolative",
    "Kron",
    "LowRankPlusSparse",
    "Method",
    "Monarch",
    "Structured",
    "Tucker",
]
