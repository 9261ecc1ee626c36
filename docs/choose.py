"""The picture and the tables of `choose.md`: run this file to renew them."""

from __future__ import annotations

from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE, PICTURE = HERE / "choose.md", HERE / "choose.svg"
BEGIN, END = "<!-- choices -->", "<!-- end of choices -->"

Choice = tuple[str, tuple[str, ...], str]
"""(what is known, functions for it in order, the page that tells more)"""

CHOICES: dict[str, tuple[str, list[Choice]]] = {
    "A network": (
        "It is to be smaller and faster, and its outputs are what counts.",
        [
            ("nothing yet", ("compress",), "compress.md"),
            ("how much can it lose?", ("frontier", "sensitivity", "spectra"), "how_much.md"),
            ("weights of any kind, inputs at hand", ("svd",), "compress.md"),
            ("convolutions with large kernels", ("tucker", "cp", "svd"), "convolutions.md"),
            ("embeddings", ("svd", "group_reduce", "tt"), "embeddings.md"),
            ("structure: repeated patterns", ("kron",), "formats.md"),
            ("structure: blocks, near and far", ("blr", "hierarchical", "hodlr"), "formats.md"),
            ("few large products on a GPU", ("monarch", "blast"), "formats.md"),
            ("recurrent and long matrices", ("tt_matrix", "tr"), "formats.md"),
            (
                "bytes count more than time",
                ("lplr", "low_rank_plus_quantized"),
                "sums_and_codes.md",
            ),
            (
                "a few entries stand out",
                ("low_rank_plus_sparse", "robust_pca"),
                "sums_and_codes.md",
            ),
            ("a convolution in groups", ("block_term",), "tensor_formats.md"),
            ("columns from several subspaces", ("dictionary",), "sums_and_codes.md"),
            ("several metrics or precisions in turn", ("staged",), "sums_and_codes.md"),
            ("factors that are columns of the weight", ("interpolative", "cur"), "skeletons.md"),
        ],
    ),
    "A matrix": (
        "It is data, and a low rank is what is looked for.",
        [
            ("nothing more", ("svd",), "formats.md"),
            ("some entries are missing", ("svd",), "completion.md"),
            ("counts or intensities, parts are wanted", ("nmf",), "nonnegative.md"),
            ("outliers", ("robust_pca",), "sums_and_codes.md"),
            ("its own columns and rows are wanted", ("interpolative", "cur"), "skeletons.md"),
            ("a kernel matrix, symmetric", ("nystrom",), "skeletons.md"),
            ("entries cost a lot to compute", ("aca",), "skeletons.md"),
            ("it grows by rows", ("IncrementalSVD",), "tensor_formats.md"),
        ],
    ),
    "A tensor": (
        "It is data with three modes or more.",
        [
            ("terms are to be read", ("cp",), "formats.md"),
            ("the same, none negative", ("nonnegative_cp", "nonnegative_tucker"), "nonnegative.md"),
            ("smooth, sparse, monotone, orthogonal", ("constrained_cp",), "nonnegative.md"),
            ("equal in all modes", ("symmetric_cp",), "nonnegative.md"),
            ("counts, yes or no, times", ("generalized_cp", "cp_apr"), "generalized.md"),
            ("mostly zeros", ("cp", "tucker"), "sparse.md"),
            ("entries are missing", ("cp", "tucker", "tt"), "completion.md"),
            (
                "how many terms?",
                ("bayesian_cp", "cross_validate", "corcondia", "scree"),
                "bayesian.md",
            ),
            ("terms that grow and cancel", ("stabilize_cp",), "honest_cp.md"),
            (
                "are the terms those of the data?",
                ("restart_congruence", "split_half"),
                "honest_cp.md",
            ),
            ("modes that depend on each other little", ("tucker",), "formats.md"),
            ("the same, and ranks are asked for", ("bayesian_tucker",), "bayesian.md"),
            ("many modes, to be stored", ("tt", "hierarchical_tucker", "tr"), "tensor_formats.md"),
            ("sums of blocks", ("block_term",), "tensor_formats.md"),
            ("slices of unequal length", ("parafac2",), "tensor_formats.md"),
            ("shares a mode with other data", ("coupled_factorization",), "tensor_formats.md"),
            ("larger than memory", ("large",), "large.md"),
        ],
    ),
}

LINE, TOP, WIDTH = 26, 44, 860
LEFT, MIDDLE = 24, 400
STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #222 }
  .head { font-weight: 600; font-size: 16px }
  .about, .why { fill: #555 }
  .name { font-family: ui-monospace, monospace; font-size: 13px }
  .card { fill: #fff; stroke: #ccc }
  .pill { fill: #e8eef9 }
  .line { stroke: #bbb; fill: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .about, .why { fill: #aaa } .card { fill: #16181d; stroke: #444 }
    .pill { fill: #24314d } .line { stroke: #555 }
  }
"""


def tables() -> str:
    """A table for each beginning."""
    found = []
    for what, (about, choices) in CHOICES.items():
        found += [
            f"## {what}",
            "",
            about,
            "",
            "| what you know | take | more |",
            "| --- | --- | --- |",
        ]
        for known, names, page in choices:
            found.append(
                f"| {known} | {', '.join(f'`{n}`' for n in names)} | [{page[:-3]}]({page}) |"
            )
        found.append("")
    return "\n".join(found)


def picture() -> str:
    """The same as a tree, an SVG without scripts, light and dark."""
    y, parts = TOP, []
    for what, (about, choices) in CHOICES.items():
        height = LINE * len(choices) + 58
        parts += [
            f'<rect class="card" x="8" y="{y - 30}" width="{WIDTH - 16}" height="{height}" '
            'rx="8"/>',
            f'<text class="head" x="{LEFT}" y="{y - 6}">{escape(what)}</text>',
            f'<text class="about" x="{LEFT + 110}" y="{y - 6}">{escape(about)}</text>',
        ]
        trunk, first = LEFT + 6, y + 4
        y += 26
        for known, names, _ in choices:
            parts.append(
                f'<path class="line" d="M{trunk} {first}V{y - 5}H{trunk + 18}"/>'
                f'<text class="why" x="{trunk + 26}" y="{y}">{escape(known)}</text>'
            )
            x = MIDDLE
            for name in names:
                wide = 8 * len(name) + 16
                parts.append(
                    f'<rect class="pill" x="{x}" y="{y - 15}" width="{wide}" height="21" rx="10"/>'
                    f'<text class="name" x="{x + 8}" y="{y}">{escape(name)}</text>'
                )
                x += wide + 8
            y += LINE
        y += 58 - 26 + 8
    size = f'width="{WIDTH}" height="{y - 30}" viewBox="0 0 {WIDTH} {y - 30}"'
    title = "<title>From what you have to a function: the tables below as a tree</title>"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{title}<style>{STYLE}</style>'
    )
    return "\n".join([head, *parts, "</svg>", ""])


def renewed(page: str) -> str:
    """The page with these tables."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text("utf-8")), "utf-8")
    PICTURE.write_text(picture(), "utf-8")
