# SPDX-License-Identifier: Apache-2.0
"""Small wrongs, one at a time: takes a module's source and yields it with one thing changed.

Changed are comparisons, and/or, conditions, constants, arithmetic and set operators, least and most, any and
all, filters of comprehensions, and statements that are left out. Docstrings, annotations, sentences for
people and messages of errors stay as they are, and so does what would be the same program: ``strict`` of
``zip`` over parts of one length, and a ``return None`` at the end. Knows nothing of what the code does.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_COUNTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitOr,
}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "reversed": "list"}
_METHODS = {"union": "intersection", "intersection": "union", "any": "all", "all": "any", "lower": "upper"}
_METHODS |= {"logical_and": "logical_or", "logical_or": "logical_and", "minimum": "maximum"}
_METHODS |= {"maximum": "minimum", "append": "count", "add": "discard"}
_SPEAKING = {"sentence", "text", "title", "name", "message", "strict"}


class Mutant(NamedTuple):
    """One changed source."""

    module: str
    line: int
    says: str
    source: str


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a module."""
    tree = ast.parse(source)
    for path, node in _walk(tree, ()):
        for says, do in _changes(node):
            changed = copy.deepcopy(tree)
            target, holder = _at(changed, path), _at(changed, path[:-2]) if len(path) >= 2 else None
            do(target, holder, path)
            ast.fix_missing_locations(changed)
            yield Mutant(module, getattr(node, "lineno", 0), says, ast.unparse(changed))


def _walk(node: ast.AST, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], ast.AST]]:
    """Nodes with the way to them; what is only said, and never evaluated, is left out."""
    yield path, node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases") or (
            isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom)
        ):
            continue
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.target.id == "CODES"
        ):
            continue
        for place, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not (
                _is_docstring(child) or _speaks(child) or _ends_anyway(node, child)
            ):
                yield from _walk(child, (*path, field, place if isinstance(value, list) else None))


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _speaks(node: ast.AST) -> bool:
    return isinstance(node, ast.keyword) and node.arg in _SPEAKING


def _ends_anyway(node: ast.AST, child: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef) or child is not node.body[-1]:
        return False
    return isinstance(child, ast.Return) and getattr(child.value, "value", child) is None


def _at(tree: ast.AST, path: tuple[Any, ...]) -> Any:
    node: Any = tree
    for field, place in zip(path[::2], path[1::2], strict=True):
        node = getattr(node, field)
        if place is not None:
            node = node[place]
    return node


_Do = Callable[[Any, Any, tuple[Any, ...]], None]


def _changes(node: ast.AST) -> Iterator[tuple[str, _Do]]:  # noqa: PLR0912 - one arm per kind of node
    match node:
        case ast.Compare(ops=ops):
            for place, op in enumerate(ops):
                for other in _COMPARED[type(op)]:
                    yield f"{type(op).__name__} -> {other.__name__}", _put_op(place, other)
        case ast.BoolOp(op=op, values=values):
            other_op = ast.Or if isinstance(op, ast.And) else ast.And
            yield f"{type(op).__name__} -> {other_op.__name__}", _set("op", other_op)
            for place in range(len(values)):
                yield f"operand {place} left out", _drop_value(place)
        case ast.UnaryOp(op=ast.Not()):
            yield "not left out", _replace(lambda one: one.operand)
        case ast.UnaryOp(op=ast.Invert()):
            yield "~ left out", _replace(lambda one: one.operand)
        case ast.BinOp(op=op) if type(op) in _COUNTED:
            yield f"{type(op).__name__} -> {_COUNTED[type(op)].__name__}", _set("op", _COUNTED[type(op)])
        case ast.AugAssign():
            yield "statement left out", _replace(lambda one: ast.Pass())
        case ast.If() | ast.IfExp():
            yield "condition always true", _set_value("test", True)
            yield "condition always false", _set_value("test", False)
        case ast.While():
            yield "loop left out", _set_value("test", False)
        case ast.comprehension(ifs=ifs) if ifs:
            yield "filter left out", _set_list("ifs")
        case ast.Constant(value=bool(value)):
            yield f"{value} -> {not value}", _constant(not value)
        case ast.Constant(value=int(value)):
            yield f"{value} -> {value + 1}", _constant(value + 1)
        case ast.Expr(value=ast.Call()) | ast.Continue() | ast.Break() | ast.Delete():
            yield "statement left out", _replace(lambda one: ast.Pass())
        case ast.Assign(targets=[ast.Subscript()]):
            yield "statement left out", _replace(lambda one: ast.Pass())
        case ast.Name(id=name) if name in _NAMES:
            yield f"{name} -> {_NAMES[name]}", _set_text("id", _NAMES[name])
        case ast.Attribute(attr=name) if name in _METHODS:
            yield f".{name} -> .{_METHODS[name]}", _set_text("attr", _METHODS[name])
        case ast.Return(value=ast.Constant(value=None)):
            yield "return left out", _replace(lambda one: ast.Pass())


def _put_op(place: int, other: type[ast.cmpop]) -> _Do:
    def do(target: Any, holder: Any, path: tuple[Any, ...]) -> None:
        target.ops[place] = other()

    return do


def _set(field: str, kind: type[ast.AST]) -> _Do:
    return lambda target, holder, path: setattr(target, field, kind())


def _set_text(field: str, text: str) -> _Do:
    return lambda target, holder, path: setattr(target, field, text)


def _set_value(field: str, value: bool) -> _Do:
    return lambda target, holder, path: setattr(target, field, ast.Constant(value))


def _set_list(field: str) -> _Do:
    return lambda target, holder, path: setattr(target, field, [])


def _constant(value: Any) -> _Do:
    return lambda target, holder, path: setattr(target, "value", value)


def _drop_value(place: int) -> _Do:
    def do(target: Any, holder: Any, path: tuple[Any, ...]) -> None:
        del target.values[place]
        if len(target.values) == 1:
            target.values.append(ast.Constant(isinstance(target.op, ast.And)))

    return do


def _replace(by: Callable[[Any], ast.AST]) -> _Do:
    def do(target: Any, holder: Any, path: tuple[Any, ...]) -> None:
        field, place = path[-2:]
        if place is None:
            setattr(holder, field, by(target))
        else:
            getattr(holder, field)[place] = by(target)

    return do
