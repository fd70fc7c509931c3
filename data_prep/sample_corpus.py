"""`sample-corpus`: a corpus of real text from what every Python installation already has.

Domains, in RedPajama's jsonl form:

    reference/   the language reference that `help()` shows (pydoc_data.topics)
    packages/    descriptions of the installed distributions
    docstrings/  the docstrings of a module, each after its qualified name
    code/        the source of a module without its docstrings and licence header

The standard library comes first; well-known packages follow until the size is reached. A later
split puts single documents into validation, so no text may occur in two documents: docstrings
are cut from the code, a docstring or document seen before is left out, and so is a document that
mostly repeats earlier ones (`NoveltyFilter`).
"""

import ast
import importlib.metadata
import importlib.util
import json
import platform
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.complete_folder import already_complete, complete_folder, write_manifest
from data_prep.docstrings import separate_docstrings
from itt_composer.basics.errors import UserError

try:
    from pydoc_data import topics
except ImportError:  # Debian's minimal Python leaves it out
    topics = None  # type: ignore[assignment]

DOMAINS = ("code", "docstrings", "packages", "reference")
SITE_PACKAGES = (
    *("matplotlib", "mpmath", "networkx", "numpy", "pandas"),
    *("scipy", "sklearn", "sympy"),
)
OWN_DISTRIBUTION = "itt-composer"
MINIMUM_CHARACTERS = 200

# Tests, copies of other packages, generated modules, and what the package itself does not need.
SKIPPED_NAMES = {
    *("test", "tests", "idle_test", "conftest.py"),
    *("_vendor", "vendor", "vendored", "_vendored", "extern", "externals", "_externals"),
    *("encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__"),
}
LEADING_COMMENTS = re.compile(r"\A(?:[ \t]*(?:#.*)?\n)+")
LICENCE = re.compile(r"copyright|licen[cs]e|spdx", re.IGNORECASE)


class CorpusDocument(NamedTuple):
    """A document of the corpus: its domain, where its text comes from, and the text."""

    domain: str
    source: str
    text: str


class NoveltyFilter:
    """Admits a document unless much of it occurred in the documents before it.

    The measure: of the characters in its distinctive lines (24 characters or more, surrounding
    blanks removed), at most 0.3 may stand in lines of admitted documents.
    """

    distinctive_characters = 24
    maximum_share = 0.3

    def __init__(self) -> None:
        self.lines: set[str] = set()

    def admits(self, text: str) -> bool:
        """Decide on one document; its lines count for the following ones if it is admitted."""
        stripped = (line.strip() for line in text.splitlines())
        lines = [line for line in stripped if len(line) >= self.distinctive_characters]
        repeated = sum(len(line) for line in lines if line in self.lines)
        if repeated > self.maximum_share * sum(map(len, lines)):
            return False
        self.lines.update(lines)
        return True


def build_sample_corpus(out: Path, megabytes: int) -> dict[str, Any] | None:
    """Write the corpus to `out/<domain>/<domain>.jsonl`, at least `megabytes` of UTF-8 text.

    Args:
        out: folder to make; appears only when it is complete.
        megabytes: size to reach, in units of 1,000,000 bytes of text.

    Returns:
        The manifest, or None when `out` already held this corpus.

    Raises:
        UserError: the installation has too little text, or `out` holds something else.
    """
    recipe = {"command": "sample-corpus", "megabytes": megabytes}
    if already_complete(out, recipe):
        return None
    with complete_folder(out) as folder:
        domains = _write_documents(folder, megabytes * 1_000_000)
        total = sum(counts["utf8_bytes"] for counts in domains.values())
        if total < megabytes * 1_000_000:
            raise UserError(
                f"this Python installation has only {total / 1e6:.1f} MB of text that fits, not "
                f"{megabytes}: lower --megabytes or install any of {', '.join(SITE_PACKAGES)}"
            )
        report = {"installation": installation_fingerprint(), "domains": domains}
        return write_manifest(folder, recipe, report)


def installation_fingerprint() -> str:
    """Return what the corpus depends on: Python's version and a hash of what is installed."""
    versions = "\n".join(f"{name}=={dist.version}" for name, dist in _distributions())
    return f"Python {platform.python_version()}, {sha256(versions.encode()).hexdigest()[:16]}"


def _write_documents(folder: Path, size: int) -> dict[str, dict[str, int]]:
    counts = {domain: {"documents": 0, "characters": 0, "utf8_bytes": 0} for domain in DOMAINS}
    novelty = NoveltyFilter()
    written = 0
    with ExitStack() as stack:
        files = {}
        for domain in DOMAINS:
            (folder / domain).mkdir()
            path = folder / domain / f"{domain}.jsonl"
            files[domain] = stack.enter_context(path.open("w", encoding="utf-8"))
        for document in installed_documents():
            if written >= size:
                break
            if len(document.text) < MINIMUM_CHARACTERS or not novelty.admits(document.text):
                continue
            line = {"text": document.text, "meta": {"source": document.source}}
            files[document.domain].write(json.dumps(line, ensure_ascii=False) + "\n")
            utf8_bytes = len(document.text.encode())
            counts[document.domain]["documents"] += 1
            counts[document.domain]["characters"] += len(document.text)
            counts[document.domain]["utf8_bytes"] += utf8_bytes
            written += utf8_bytes
    for domain in DOMAINS:  # a small corpus does not reach all of them
        if not counts[domain]["documents"]:
            (folder / domain / f"{domain}.jsonl").unlink()
            (folder / domain).rmdir()
    return {domain: found for domain, found in counts.items() if found["documents"]}


def installed_documents() -> Iterator[CorpusDocument]:
    """Yield every document of the installation before the novelty filter, in a fixed order."""
    yield from _reference_documents()
    yield from _package_documents()
    yield from _module_documents()


def _reference_documents() -> Iterator[CorpusDocument]:
    texts = topics.topics if topics else {}
    # Longest first: topics contain one another, and so the contained ones are left out.
    for name in sorted(texts, key=lambda name: (-len(texts[name]), name)):
        yield CorpusDocument("reference", f"pydoc topic {name}", texts[name].strip() + "\n")


def _package_documents() -> Iterator[CorpusDocument]:
    for name, distribution in _distributions():
        metadata = distribution.metadata
        text = metadata.get("Description") or str(metadata.get_payload() or "")  # type: ignore[attr-defined]
        if _is_unicode(text):
            yield CorpusDocument("packages", f"{name} {distribution.version}", text.strip() + "\n")


def _distributions() -> list[tuple[str, importlib.metadata.Distribution]]:
    """List installed distributions by normalised name; of two with one name, the importable one."""
    found: dict[str, importlib.metadata.Distribution] = {}
    # Not sys.path, which programs add to: setuptools, once imported, its copies of others.
    folders = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    for distribution in importlib.metadata.distributions(path=list(folders)):
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name and name != OWN_DISTRIBUTION:
            found.setdefault(name, distribution)
    return sorted(found.items())


def _module_documents() -> Iterator[CorpusDocument]:
    seen_docstrings: set[str] = set()
    for module, path in _modules():
        parsed = _parse(path)
        if parsed is None or _is_table(*parsed):
            continue
        code, docstrings = separate_docstrings(*parsed, module)
        new = [docstring for docstring in docstrings if docstring.text not in seen_docstrings]
        seen_docstrings.update(docstring.text for docstring in new)
        prose = "\n\n\n".join(f"{name}\n\n{text.strip()}" for name, text in new)
        yield CorpusDocument("docstrings", module, prose + "\n")
        yield CorpusDocument("code", module, _without_licence(code).strip("\n") + "\n")


def _modules() -> Iterator[tuple[str, Path]]:
    """Yield names and files of the standard library's modules, then of `SITE_PACKAGES`."""
    standard_library = Path(sysconfig.get_path("stdlib"))
    yield from _modules_below(standard_library, standard_library)
    for name in SITE_PACKAGES:
        specification = importlib.util.find_spec(name)
        if specification and specification.submodule_search_locations:
            package = Path(specification.submodule_search_locations[0])
            yield from _modules_below(package, package.parent)


def _modules_below(folder: Path, parent: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(parent).with_suffix("").parts
        if SKIPPED_NAMES.isdisjoint(path.relative_to(parent).parts):
            yield ".".join(parts).removesuffix(".__init__"), path


def _parse(path: Path) -> tuple[str, ast.Module] | None:
    """Read and parse a source; None for one that this Python cannot read (templates, say)."""
    try:
        with tokenize.open(path) as file:
            source = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None
    return (source, tree) if _is_unicode(source) else None


def _is_table(source: str, tree: ast.Module) -> bool:
    """Return whether more than 0.4 of a module's lines are constants assigned at its top level."""
    literal = ast.Dict | ast.List | ast.Tuple | ast.Set | ast.Constant
    lines = 0
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, literal):
            lines += (node.end_lineno or node.lineno) - node.lineno + 1
    return lines > 0.4 * (source.count("\n") + 1)


def _without_licence(code: str) -> str:
    comments = LEADING_COMMENTS.match(code)
    return code[comments.end() :] if comments and LICENCE.search(comments[0]) else code


def _is_unicode(text: str) -> bool:
    """Return whether a string has a UTF-8 form, which a lone surrogate prevents."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
