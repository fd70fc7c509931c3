"""A Python source, separated into its code and its docstrings."""

import ast
import inspect
from collections.abc import Iterator
from typing import NamedTuple

Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Docstring(NamedTuple):
    """The docstring of a module, class or function, without its indentation."""

    qualified_name: str
    text: str


def separate_docstrings(source: str, tree: ast.Module, module: str) -> tuple[str, list[Docstring]]:
    """Take the docstrings out of a source; the rest stays as it is written.

    A body that held nothing else gets `pass`, so the code still parses.

    Args:
        source: a module's text, with "\\n" as its only line ending.
        tree: `ast.parse(source)`.
        module: the module's name, which the qualified names start with.

    Returns:
        The code and the docstrings, both in source order.
    """
    lines = source.split("\n")
    docstrings = []
    # Cutting from the end keeps the line numbers of what comes before.
    for name, definition in reversed(list(_definitions(tree, module))):
        strings = _leading_strings(definition)
        for position, node in reversed(list(enumerate(strings))):
            sole = position == 0 and len(strings) == len(definition.body)
            _cut(lines, node, keep_pass=sole)
        if strings:
            text = "\n\n".join(inspect.cleandoc(node.value.value) for node in strings)  # type: ignore[attr-defined]
            docstrings.append(Docstring(name, text))
    return "\n".join(lines), docstrings[::-1]


def _definitions(node: ast.AST, name: str) -> Iterator[tuple[str, Definition]]:
    """Yield the module and every class and function below it, in source order."""
    if isinstance(node, Definition):
        yield name, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _definitions(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from _definitions(child, name)


def _leading_strings(definition: Definition) -> list[ast.Expr]:
    # All of them: if only the first were cut, the second would become the docstring.
    strings = []
    for statement in definition.body:
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            break
        if not isinstance(statement.value.value, str):
            break
        strings.append(statement)
    return strings


def _cut(lines: list[str], node: ast.Expr, keep_pass: bool) -> None:
    """Remove a statement from `lines`: whole lines if it fills them, else put `pass` there."""
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    # Columns of the syntax tree count UTF-8 bytes.
    before = lines[first].encode()[: node.col_offset].decode()
    after = lines[last].encode()[node.end_col_offset :].decode()
    fills_lines = not before.strip() and not after.strip()
    lines[first : last + 1] = [] if fills_lines and not keep_pass else [f"{before}pass{after}"]
