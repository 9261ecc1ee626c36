"""`--html`: pages of what commands did, beside what they wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.calls import Program, cnn, save_state


def test_commands_on_files_leave_pages(program: Program, tmp_path: Path) -> None:
    net = save_state(cnn(), tmp_path / "net.safetensors")
    small, page = tmp_path / "small.safetensors", tmp_path / "page.html"
    options = ("--keep-params", 0.5, "--html", page)
    heading = "<h1>net.safetensors, compressed</h1>"
    stored = ("How it was made", "as it is stored", "svd, gates together")
    for arguments, told in (
        (("compress", net, "-o", small, *options), (heading, "load(&#x27;small.safetensors&#x27;")),
        (("compress", net, "-o", tmp_path / "b.safetensors", "--stream", *options), (heading,)),
        (("inspect", small, "--html", page), stored),
        (("sensitivity", net, "--html", page), ("Loss at 50%", "layer by layer")),
    ):
        done = program(*arguments)
        assert done.code == 0, done.err
        html = page.read_text(encoding="utf-8")
        for words in (*told, "</html>", "Environment and versions"):
            assert words in html
        assert str(tmp_path) not in html
        page.unlink()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--html", "report.pdf"), "a page is written as .html"),
        (("--html", "nowhere/report.html"), "is missing"),
        (("--html", "r.html", "--plan-only"), "--html is of what was done, and --plan-only"),
        (
            ("--html", "r.html", "--stream", "--dry-run"),
            "--html is of what was done, and --dry-run",
        ),
    ],
)
def test_pages_that_cannot_be_are_told_before_the_work(
    program: Program, tmp_path: Path, arguments: tuple[object, ...], says: str
) -> None:
    net = save_state(cnn(), tmp_path / "net.safetensors")
    small = tmp_path / "small.safetensors"
    assert says in program("compress", net, "-o", small, "--keep-params", 0.5, *arguments).error
    assert not small.exists()


def test_factors_alone_have_no_page(program: Program, tmp_path: Path) -> None:
    net, alone = save_state(cnn(), tmp_path / "net.safetensors"), tmp_path / "alone.safetensors"
    named = ("--name", next(name for name in cnn().state_dict() if name.endswith("weight")))
    done = program("decompose", net, *named, "--rank", 2, "--method", "svd", "-o", alone)
    assert done.code == 0, done.err
    assert "factors alone" in program("inspect", alone, "--html", tmp_path / "x.html").error


def test_a_folder_has_its_page_beside_it(program: Program, tmp_path: Path) -> None:
    """Which replaces one of ours, and nothing else."""
    from safetensors.torch import save_file

    net, small, page = tmp_path / "net", tmp_path / "small", tmp_path / "small.html"
    net.mkdir()
    tensors = {name: t for name, t in cnn().state_dict().items() if t.dim() == 2}
    save_file(tensors, net / "model.safetensors")
    command = ("compress", net, "-o", small, "--keep-params", 0.5, "--stream")
    done = program(*command)
    assert done.code == 0, done.err
    assert f"its page is {page}" in done.out
    whole = page.read_text(encoding="utf-8")
    assert "<h1>net, compressed</h1>" in whole
    page.write_text(whole.replace("compressed", "of before"), encoding="utf-8")
    assert program(*command).code == 0  # all is done, and the page is made anew
    assert page.read_text(encoding="utf-8").count("of before") == 0
    page.write_text("mine", encoding="utf-8")
    done = program(*command)
    assert "small.html is no page of tensorlrf and stays as it is" in done.err
    assert page.read_text(encoding="utf-8") == "mine"
    page.unlink()
    assert program(*command, "--no-html").code == 0
    assert program(*command, "--html", tmp_path / "other.html").code == 0
    assert not page.exists()
    assert (tmp_path / "other.html").exists()
    refused = program(*command, "--no-html", "--html", page)
    assert "--html names a page and --no-html wants none" in refused.error
