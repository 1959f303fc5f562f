"""The modules that a module uses, found in the source code without running it."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Reference:
    """An imported module, or a name imported from a module."""

    module: str
    name: str | None = None

    @property
    def top(self) -> str:
        """The top-level package."""
        return self.module.partition(".")[0]


@dataclass(frozen=True)
class SourceModule:
    """A parsed module and what it imports, also inside functions."""

    name: str
    path: Path
    tree: ast.Module
    """Without comments, docstrings and descriptions of settings, which cannot change a result."""
    references: frozenset[Reference]
    imports: Mapping[str, Reference]
    """The definition that each imported name refers to."""
    texts: frozenset[str]
    """Strings that may name a module, such as the argument of `import_module` or of `python -m`."""
    prefixes: frozenset[str]
    """Packages from which modules are imported by computed names: `import_module(f"posttrain.data.{name}")`."""

    @property
    def is_package(self) -> bool:
        """Return whether the module is the `__init__.py` of a package."""
        return self.path.name == "__init__.py"

    @cached_property
    def runs_statements(self) -> bool:
        """Return whether importing the module does more than define names."""
        passive = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Pass)
        return not all(isinstance(statement, passive) or _is_type_checking(statement) for statement in self.tree.body)

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of the code and of its package's data files, such as templates; a top-level package has none."""
        digest = hashlib.sha256(f"{self.name}\n{ast.unparse(self.tree)}".encode())
        for file in _data_files(self.path.parent) if "." in self.name else ():
            digest.update(f"{file.relative_to(self.path.parent).as_posix()}\n".encode() + file.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Reached:
    """Everything that a module uses, directly and through other modules."""

    modules: frozenset[str]
    packages: frozenset[str]
    """Import names of third-party packages."""


@dataclass
class SourceGraph:
    """The modules of some top-level packages, each parsed when it is first needed."""

    folders: Mapping[str, Path]
    """The folder of each top-level package."""
    without: tuple[str, ...] = ()
    """Modules and packages that are not followed."""
    _parsed: dict[str, SourceModule | None] = field(default_factory=dict)

    def module(self, name: str) -> SourceModule | None:
        """Return a module, or None if the packages have no module of that name."""
        if name not in self._parsed:
            path = self._path(name)
            self._parsed[name] = parse(name, path) if path else None
        return self._parsed[name]

    def below(self, package: str) -> list[str]:
        """Return the names of a package and of all modules in it."""
        folder = self._folder(package)
        if folder is None:
            return []
        names = (".".join([package, *path.relative_to(folder).with_suffix("").parts]) for path in folder.rglob("*.py"))
        return sorted(name.removesuffix(".__init__") for name in names)

    def reached(self, *start: str, without: tuple[str, ...] = ()) -> Reached:
        """Return everything that some modules use, these modules included.

        Args:
            without: further modules and packages that are not followed.
        """
        modules: set[str] = set()
        packages: set[str] = set()
        waiting = list(start)
        while waiting:
            name = waiting.pop()
            module = None if name in modules or self._is_left_out(name, without) else self.module(name)
            if module is None:
                continue
            modules.add(name)
            for reference in module.references:
                if reference.top in self.folders:
                    waiting += self._targets(reference)
                elif reference.top not in sys.stdlib_module_names:
                    packages.add(reference.top)
            waiting += [text for text in module.texts if self.module(text)]
            for prefix in module.prefixes:
                waiting += self.below(prefix)
            waiting += [parent for parent in _parents(name) if (p := self.module(parent)) and p.runs_statements]
        return Reached(frozenset(modules), frozenset(packages))

    def definition(self, reference: Reference) -> Reference:
        """Return where a name is defined, followed through the modules that only pass it on."""
        module = self.module(reference.module)
        passed_on = module.imports.get(reference.name or "") if module else None
        return reference if passed_on in (None, reference) else self.definition(passed_on)

    def _targets(self, reference: Reference) -> list[str]:
        """The modules that an import needs: of a name that a package passes on, the module that defines it."""
        module = self.module(reference.module)
        if module is None or reference.name is None or not module.is_package:
            return [reference.module]
        passed_on = module.imports.get(reference.name)
        if passed_on and passed_on != reference and passed_on.top in self.folders:
            return self._targets(passed_on)
        submodule = f"{reference.module}.{reference.name}"
        return [submodule if self.module(submodule) else reference.module]

    def _is_left_out(self, name: str, further: tuple[str, ...] = ()) -> bool:
        return any(name == other or name.startswith(f"{other}.") for other in (*self.without, *further))

    def _path(self, name: str) -> Path | None:
        folder = self._folder(name)
        if folder is None:
            return None
        return next((p for p in (folder / "__init__.py", folder.with_suffix(".py")) if p.is_file()), None)

    def _folder(self, name: str) -> Path | None:
        top, *rest = name.split(".")
        return self.folders[top].joinpath(*rest) if top in self.folders else None


def parse(name: str, path: Path) -> SourceModule:
    """Return the module in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    bound: list[tuple[str, Reference]] = []
    texts, prefixes = set(), set()
    for node in _stripped_nodes(tree):
        match node:
            case ast.Import():
                bound += [(alias.asname or alias.name.partition(".")[0], Reference(alias.name)) for alias in node.names]
            case ast.ImportFrom():
                parts = package[: len(package) - node.level + 1] if node.level else []
                source = ".".join([*parts, *([node.module] if node.module else [])])
                bound += [(alias.asname or alias.name, Reference(source, alias.name)) for alias in node.names]
            case ast.Constant(value=str(text)) if _is_dotted_name(text):
                texts.add(text)
            case ast.Call(args=[ast.JoinedStr(values=[ast.Constant(value=start), *_]), *_]):
                if _called(node) in ("import_module", "__import__"):
                    prefixes.add(str(start).rpartition(".")[0])
    references = frozenset(reference for _, reference in bound)
    return SourceModule(name, path, tree, references, dict(bound), frozenset(texts), frozenset(prefixes))


def _stripped_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """Remove from a tree what cannot change a result or only a type checker sees, and yield every node that is left."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if _is_type_checking(node):
            assert isinstance(node, ast.If)
            node.body = [ast.Pass()]
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_without_effect(statement)]
            if not isinstance(node, ast.Module):
                node.body = node.body or [ast.Pass()]
        elif isinstance(node, ast.Call) and _called(node) == "Field":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "description"]
        yield node
        waiting += ast.iter_child_nodes(node)


def _is_without_effect(statement: ast.stmt) -> bool:
    """Return whether a statement is only a string, such as a docstring, or only for type checkers."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.If(orelse=[]):
            return _is_type_checking(statement)
    return False


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _called(node: ast.Call) -> str | None:
    """The name of the function that is called, without its module."""
    return getattr(node.func, "id", None) or getattr(node.func, "attr", None)


def _is_dotted_name(text: str) -> bool:
    return "." in text and all(part.isidentifier() for part in text.split("."))


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _data_files(folder: Path) -> list[Path]:
    """The files of a package that are not code, such as templates, in order."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__pycache__")):
            continue
        if path.is_dir() and not any(path.rglob("*.py")):
            found += sorted(file for file in path.rglob("*") if file.is_file())
        elif path.is_file() and path.suffix not in (".py", ".pyc") and path.name != "py.typed":
            found.append(path)
    return found
