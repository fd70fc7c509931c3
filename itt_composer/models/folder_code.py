"""Writes the model's code into a transformers folder, so that it loads where this package is not.

`configuration_itt.py` and `modeling_itt.py` hold the classes with all that they need, cut out of
the files of this package, so that nothing is written twice. They are two, as transformers 4.57 does
not copy what an imported file imports in its turn.
"""

import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import itt_composer

PACKAGE = "itt_composer"
CONFIGURATION, MODELING = "configuration_itt", "modeling_itt"
# What each file is made for, as (module, name). The second imports what the first has. A release of
# transformers that is out of range is refused by the first, as it is always loaded before.
ROOTS = {
    CONFIGURATION: (
        (f"{PACKAGE}.models.versions", "check_version"),
        (f"{PACKAGE}.models.configuration", "IttConfig"),
    ),
    MODELING: (
        (f"{PACKAGE}.models.modeling", "IttModel"),
        (f"{PACKAGE}.models.modeling", "IttForCausalLM"),
    ),
}
# Which class each Auto class makes.
AUTO_MAP = {
    "AutoConfig": f"{CONFIGURATION}.IttConfig",
    "AutoModel": f"{MODELING}.IttModel",
    "AutoModelForCausalLM": f"{MODELING}.IttForCausalLM",
}
HEADER = '''\
# Copyright The authors of itt_composer
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""{what}

Cut out of itt_composer {version} by a program. A comment before each part names its file there.
"""
'''
WHAT = {
    CONFIGURATION: "The configuration of an Inner Thinking Transformer (arXiv 2502.13842).",
    MODELING: "An Inner Thinking Transformer (arXiv 2502.13842) on transformers' LLaMA.",
}
FOR_TOOLS = re.compile(r"  # (type: ignore|noqa)\b.*$")
WIDTH = 100


def write_code(folder: Path) -> None:
    """Write the code into a folder that holds an ITT, and name it in its `config.json`."""
    for name, code in code_files().items():
        (folder / name).write_text(code, encoding="utf-8")
    place = folder / "config.json"
    config = json.loads(place.read_bytes()) | {"auto_map": AUTO_MAP}
    place.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def has_code(folder: Path) -> bool:
    """Return whether a folder holds the code of an ITT."""
    return all((folder / f"{name}.py").is_file() for name in ROOTS)


@cache
def code_files() -> dict[str, str]:
    """Return the content of each file by its name; the same whenever this version is asked."""
    modules: dict[str, Module] = {}
    elsewhere: dict[tuple[str, str], str] = {}
    files = {}
    for name, roots in ROOTS.items():
        cut = Cut(modules, elsewhere)
        for module, root in roots:
            cut.take(module, root)
        head = HEADER.format(what=WHAT[name], version=itt_composer.__version__).rstrip()
        files[f"{name}.py"] = "\n\n\n".join([f"{head}\n\n{cut.imports()}", *cut.parts()]) + "\n"
        elsewhere |= dict.fromkeys(cut.taken, name)
    return files


@dataclass
class Module:
    """A file of this package, by what stands at its top level.

    Attributes:
        lines: of the file.
        docstring: without its quotes.
        definitions: statements by the name that they define.
        calls: of functions that the file defines, by their names. Those of methods, which register
            a class, are left out.
        own: what it imports of this package, as (module, name); name None is the module itself.
        others: its other imports, as (module, what is imported); module None for `import x`.
    """

    lines: list[str]
    docstring: str
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    calls: dict[str, ast.stmt] = field(default_factory=dict)
    own: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    others: dict[str, tuple[str | None, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str) -> "Module":
        """Read a module's file without importing it."""
        source = _file_of(name).read_text(encoding="utf-8")
        tree = ast.parse(source)
        module = cls(source.splitlines(), ast.get_docstring(tree) or "")
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                module.add_import(node)
            elif isinstance(node, ast.Expr):
                function = getattr(node.value, "func", None)
                if isinstance(function, ast.Name):
                    module.calls[function.id] = node
            else:
                module.definitions |= dict.fromkeys(_defined(node), node)
        return module

    def add_import(self, node: ast.Import | ast.ImportFrom) -> None:
        origin = node.module or "" if isinstance(node, ast.ImportFrom) else None
        for alias in node.names:
            known = alias.asname or alias.name.partition(".")[0]
            if origin is None or origin.partition(".")[0] != PACKAGE:
                renamed = f" as {alias.asname}" if alias.asname else ""
                self.others[known] = (origin, alias.name + renamed)
            elif _file_of(origin).name == "__init__.py":
                self.own[known] = (f"{origin}.{alias.name}", None)
            else:
                self.own[known] = (origin, alias.name)

    def needs(self, node: ast.stmt) -> Iterator[str]:
        """Yield what a statement needs of this file: names, and `module.name` of a module."""
        used = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
        bound = {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}
        for each in ast.walk(node):
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                bound.add(each.id)
            for kind in (getattr(each, "annotation", None), getattr(each, "returns", None)):
                used |= set(_words_in_texts(kind))
        modules = {name for name, (_, part) in self.own.items() if part is None}
        known = self.definitions.keys() | self.others.keys() | self.own.keys()
        yield from sorted(used & known - modules)
        for each in ast.walk(node):
            if not isinstance(each, ast.Attribute) or not isinstance(each.value, ast.Name):
                continue
            if each.value.id in modules:
                assert each.attr not in bound, f"{each.attr} has two meanings in one place"
                yield f"{each.value.id}.{each.attr}"

    def text(self, node: ast.stmt) -> str:
        """Return a statement with the comments above it.

        What the file knows as `module.name` of this package stands there as `name`.
        """
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
        start = first - 1
        while start and self.lines[start - 1].startswith("#"):
            start -= 1
        modules = "|".join(name for name, (_, part) in self.own.items() if part is None)
        lines = [FOR_TOOLS.sub("", line) for line in self.lines[start : node.end_lineno]]
        if modules:
            lines = [re.sub(rf"(?<![\w.`])(?:{modules})\.(?=[A-Za-z])", "", line) for line in lines]
        return "\n".join(lines)


class Cut:
    """Collects what one file needs.

    Args:
        modules: those read so far.
        elsewhere: what another file of the folder has: (module, name) → file.

    Attributes:
        taken: what it has, likewise.
    """

    def __init__(self, modules: dict[str, Module], elsewhere: dict[tuple[str, str], str]):
        self.taken: set[tuple[str, str]] = set()
        self._modules = modules
        self._elsewhere = elsewhere
        self._imports: dict[str, tuple[str | None, str]] = {}

    def take(self, module: str, name: str) -> None:
        """Take a definition with all that it needs."""
        if (module, name) in self._elsewhere:
            self._import(name, (f".{self._elsewhere[module, name]}", name))
            return
        if (module, name) in self.taken:
            return
        source = self._module(module)
        node = source.definitions[name]
        self.taken |= {(module, each) for each in _defined(node)}
        needs = set(source.needs(node))
        if name in source.calls:
            needs |= set(source.needs(source.calls[name]))
        for needed in sorted(needs):
            whole, _, part = needed.partition(".")
            if needed in source.definitions:
                self.take(module, needed)
            elif needed in source.others:
                self._import(needed, source.others[needed])
            else:
                origin, own = source.own[whole]
                assert own in (None, needed), f"{module} renames {own} of {origin}"
                self.take(origin, part or needed)

    def _import(self, name: str, what: tuple[str | None, str]) -> None:
        assert self._imports.setdefault(name, what) == what, f"{name} is imported as two things"

    def _module(self, name: str) -> Module:
        if name not in self._modules:
            self._modules[name] = Module.read(name)
        return self._modules[name]

    def imports(self) -> str:
        """Return the imports, in the order that formatters give them."""
        origins: dict[str, list[str]] = {}
        plain = []
        for origin, what in self._imports.values():
            if origin is None:
                plain.append(what)
            else:
                origins.setdefault(origin, []).append(what)
        groups: dict[int, list[str]] = {}
        for what in sorted(plain):
            groups.setdefault(_group(what), []).append(f"import {what}")
        for origin in sorted(origins):
            groups.setdefault(_group(origin), []).append(_from(origin, sorted(origins[origin])))
        return "\n\n".join("\n".join(groups[group]) for group in sorted(groups))

    def parts(self) -> Iterator[str]:
        """Yield what was taken of each file, those that others build on first."""
        names = [name for _, name in self.taken]
        twice = sorted({name for name in names if names.count(name) > 1})
        assert not twice, f"two files define {', '.join(twice)}, and both go into one: rename one"
        for module in self._in_order():
            source = self._modules[module]
            statements = {
                node.lineno: node
                for name, node in (*source.definitions.items(), *source.calls.items())
                if (module, name) in self.taken
            }
            words = [f"# {line}".rstrip() for line in source.docstring.splitlines()]
            head = "\n".join([f"# From {module.replace('.', '/')}.py", "#", *words])
            yield "\n\n\n".join([head, *_paragraphs(source, statements)])

    def _in_order(self) -> list[str]:
        order: list[str] = []

        def visit(module: str) -> None:
            for needed, _ in self._modules[module].own.values():
                if needed in taken and needed not in order:
                    visit(needed)
            if module not in order:
                order.append(module)

        taken = sorted({module for module, _ in self.taken})
        for module in taken:
            visit(module)
        return order


def _paragraphs(source: Module, statements: dict[int, ast.stmt]) -> Iterator[str]:
    """Yield the statements in order, those of single lines that stood together in one."""
    together: list[str] = []
    for line in sorted(statements):
        node = statements[line]
        is_block = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        if is_block and together:
            yield "\n".join(together)
            together = []
        if is_block:
            yield source.text(node)
        else:
            together.append(source.text(node))
    if together:
        yield "\n".join(together)


def _defined(node: ast.stmt) -> list[str]:
    """Return the names that a statement at the top level defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
    return [
        each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)
    ]


def _words_in_texts(annotation: ast.AST | None) -> Iterator[str]:
    """Yield the names in the parts of an annotation that are text."""
    for part in ast.walk(annotation) if isinstance(annotation, ast.AST) else ():
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield from re.findall(r"[A-Za-z_]\w*", part.value)


def _file_of(module: str) -> Path:
    spec = find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return Path(spec.origin)


def _group(module: str) -> int:
    """Return where a module's import stands: the standard library, others, this folder."""
    if module.startswith("."):
        return 2
    return 0 if re.split(r"[. ]", module)[0] in sys.stdlib_module_names else 1


def _from(origin: str, names: Iterable[str]) -> str:
    names = list(names)
    line = f"from {origin} import {', '.join(names)}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"from {origin} import (", *(f"    {name}," for name in names), ")"])
