"""How Sphinx builds the site: `make docs`, warnings are errors, every reference must resolve.

The build asks no network: other projects' objects are looked up in the small inventories of
`inventories/`, which name what our pages link to. So it says the same everywhere, and a page that
links to something new adds a line there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "kernels")]

import notebook_pages  # noqa: E402  (beside this file, where Sphinx does not look)
import reference_pages  # noqa: E402
import result_pages  # noqa: E402

import tensorlrf  # noqa: E402

project = "tensorlrf"
copyright = "the tensorlrf authors"
version = release = tensorlrf.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
]
html_theme = "furo"
html_title = "tensorlrf"
exclude_patterns = ["inventories"]
templates_path = ["_templates"]
nitpicky = True
default_role = "literal"  # `rank` in a docstring is an argument, not the name of an object

myst_heading_anchors = 3

autosummary_generate = True
autosummary_imported_members = True
autodoc_typehints = "none"  # the section Parameters tells types, with shapes
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"

numpydoc_show_class_members = False
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"  # words of a type that are not named below stay words
numpydoc_xref_aliases = {
    **{word: word for word in ("None", "bool")},  # as they are
    "array": "numpy.ndarray",
    "callable": "collections.abc.Callable",
    "iterable": "collections.abc.Iterable",
    "Mapping": "collections.abc.Mapping",
    "sequence": "collections.abc.Sequence",
    "Tensor": "torch.Tensor",
    "Generator": "torch.Generator",
    "Module": "torch.nn.Module",
    "dtype": "torch.dtype",
    "device": "torch.device",
    **{name.rpartition(".")[2]: name for name in reference_pages.listed()},
}

intersphinx_mapping = {
    name: (address, str(HERE / "inventories" / f"{name}.txt"))
    for name, address in {
        "numpy": "https://numpy.org/doc/stable/",
        "python": "https://docs.python.org/3/",
        "tensorly": "https://tensorly.org/stable/",
        "torch": "https://docs.pytorch.org/docs/stable/",
    }.items()
}


def _on_the_site(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = result_pages.on_the_site(source[0], depth=page.count("/"))


def setup(app: Sphinx) -> None:
    """Result files and notebooks become pages, and links to them lead there."""
    notebook_pages.write(HERE.parent / "notebooks", HERE / "notebooks")
    result_pages.write(HERE.parent / "bench" / "results", HERE / "results")
    app.connect("source-read", _on_the_site)
