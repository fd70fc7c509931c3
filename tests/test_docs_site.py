"""The documentation's site is strict, and links of the pages outside of it lead somewhere."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)(#[^)\s]*)?\)")


@pytest.fixture
def site(tmp_path) -> Path:
    """A copy of what `make docs` reads."""
    shutil.copy(REPOSITORY / "mkdocs.yml", tmp_path)
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    return tmp_path


def built(site: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(command, cwd=site, capture_output=True, text=True)


def add(text: str, page: str = "index.md"):
    def spoil(docs: Path) -> None:
        with (docs / page).open("a") as file:
            file.write(text)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda docs: None, None),
        (add("[page](nowhere.md)"), "nowhere.md"),
        (add("[part](glossary.md#nowhere)"), "#nowhere"),
        (lambda docs: (docs / "glossary.md").unlink(), "glossary.md"),
        (add("# Forgotten", "forgotten.md"), "forgotten.md"),
    ],
    ids=["as it is", "broken link", "broken anchor", "missing page", "page outside of navigation"],
)
def test_the_site_is_built_and_refuses_what_leads_nowhere(site, spoil, named):
    spoil(site / "docs")
    result = built(site)
    assert (result.returncode == 0) == (named is None), result.stderr
    assert named is None or named in result.stderr


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_the_pages_outside_of_the_site_lead_somewhere(page):
    text = (REPOSITORY / page).read_text()
    for target, anchor in LINK.findall(text):
        assert (REPOSITORY / target).exists(), f"{page} links to {target}, which is not there"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", (REPOSITORY / target).read_text(), re.MULTILINE)
            slugs = {
                re.sub(r"[^\w\- ]", "", one).strip().lower().replace(" ", "-") for one in headings
            }
            assert anchor[1:] in slugs, f"{page} links to {target}{anchor}, which is not there"


PATH = re.compile(
    r"`((?:itt_composer|data_prep|eval|tests|benchmarks|scripts|yamls|docs)/[\w./-]*\w)`"
)


def test_files_that_the_pages_name_are_there():
    pages = [
        *REPOSITORY.glob("docs/*.md"),
        REPOSITORY / "README.md",
        REPOSITORY / "CONTRIBUTING.md",
    ]
    missing = {
        f"{page.name}: {path}"
        for page in pages
        for path in PATH.findall(page.read_text())
        if not (REPOSITORY / path).exists() and not path.endswith("my_recipe.yaml")
    }
    assert not missing
