"""What holds for every source file; each rule is also shown a file that breaks it."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import voxelry

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "voxelry"
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".j2", ".txt", ".cfg", ""}
# Today's worst, to be lowered; a constructor of many settings is what dataclasses are for.
LENGTH, PARAMETERS = 67, 9
# Of a command, whose parameters are its options, a line or three each.
COMMAND, OPTIONS = 74, 25
# Compiled kernels take arrays one by one; a signature of the originals is as long as it was there.
GIVEN = {"interop/legacy/originals.py": 16, "ops/kernels/triton_roi_align.py": 17}
KERNEL = 10

# Readers and the originals' names have a rank of their own.
RANK_AWARE = {"nn/nd.py", "core/rank.py"}

CODE_BEARING = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}

Rule = Callable[[Path, str], Iterator[str]]


@cache
def nodes(path: Path, text: str) -> tuple[ast.AST, ...]:
    """All of a file, the module first; kept for the next rule."""
    return tuple(ast.walk(ast.parse(text, str(path))))


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    nodes.cache_clear()


def dotted(node: ast.AST) -> str:
    """A name such as `yaml.load`; of anything else than a name, what follows its last bracket."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    parts.append(node.id if isinstance(node, ast.Name) else "")
    return ".".join(reversed(parts))


# Rules: a path relative to the package and its text, to the faults in it.


def has_short_functions(path: Path, text: str) -> Iterator[str]:
    for node in nodes(path, text):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            most = COMMAND if path.parts[0] == "cli" else LENGTH
            if lines > most:
                yield f"line {node.lineno}: {node.name} has {lines} lines, at most {most}"


def has_functions_of_few_parameters(path: Path, text: str) -> Iterator[str]:
    for node in nodes(path, text):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len(names) - (names[:1] == ["self"])
            room = OPTIONS if path.parts[0] == "cli" else KERNEL if path.parts[:2] == ("ops", "kernels") else PARAMETERS
            most = GIVEN.get(path.as_posix(), room)
            if count > most:
                yield f"line {node.lineno}: {node.name} has {count} parameters, at most {most}"


def says_what_it_takes(path: Path, text: str) -> Iterator[str]:
    for node in nodes(path, text):
        if isinstance(node, ast.Call) and dotted(node.func) == "locals":
            yield f"line {node.lineno}: locals() (settings are a dataclass, see core.settings.Configured)"


def is_about_something(path: Path, text: str) -> Iterator[str]:
    if path.stem.lower() in {"utils", "util", "common", "helpers", "misc", "tools"}:
        yield "a name that says nothing about the contents"


def says_what_it_is(path: Path, text: str) -> Iterator[str]:
    if not ast.get_docstring(nodes(path, text)[0]):
        yield "no module docstring"


def names_no_rank_specific_layer(path: Path, text: str) -> Iterator[str]:
    if path.as_posix() == "nn/nd.py":
        return
    for node in nodes(path, text):
        names = []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and node.value in ("bilinear", "trilinear", "bicubic"):
            yield f"line {node.lineno}: {node.value!r} outside nn/nd.py"
        for name in names:  # filtering along one axis at a time is fine at any rank, hence not 1d
            if re.fullmatch(r"(Lazy)?(Conv\w*|\w*Norm|\w*Pool|\w*Pad|Dropout|conv\w*|\w*_pool)[23]d", name):
                yield f"line {node.lineno}: {name} outside nn/nd.py"


def has_no_rank_twins(path: Path, text: str) -> Iterator[str]:
    if path.parts[0] == "interop":  # answers to the names that the originals gave their classes
        return
    for node in nodes(path, text):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if re.search(r"[23][dD](?![a-z])", node.name):
                yield f"line {node.lineno}: {node.name} names a rank"
            if re.search(r"(_v|V)\d+$", node.name):
                yield f"line {node.lineno}: {node.name} names a version"


def does_not_branch_on_rank(path: Path, text: str) -> Iterator[str]:
    if path.as_posix() in RANK_AWARE or path.as_posix().startswith(("interop/", "io/")):
        return
    for node in nodes(path, text):
        if isinstance(node, ast.Compare) and len(node.comparators) == 1:
            sides = {ast.unparse(node.left), ast.unparse(node.comparators[0])}
            subject = sides & {"ndim", "self.ndim", "space.ndim", "self.space.ndim", "sample.ndim", "dims", "rank"}
            if subject and sides & {"2", "3"}:
                yield f"line {node.lineno}: {ast.unparse(node)}"


def imports_its_own_at_the_top(path: Path, text: str) -> Iterator[str]:
    """An import inside a function is for what is heavy, never a way round a circle.

    The command line imports what a command needs when it runs; kernels are compiled when they are first called.
    """
    if path.parts[0] == "cli":
        return
    functions = [one for one in nodes(path, text) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in {node for function in functions for node in ast.walk(function)}:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [("voxelry." if node.level else "") + (node.module or "")]
        for name in names:
            if name.split(".")[0] == "voxelry" and not name.startswith("voxelry.ops.kernels"):
                yield f"line {node.lineno}: {name} inside a function"


def leaves_nothing_undone(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b", line):
            yield f"line {number}: {line.strip()}"


def runs_nothing_it_loads(path: Path, text: str) -> Iterator[str]:
    for node in nodes(path, text):
        imported = [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Attribute):
            imported = [dotted(node)]
        for name in imported:
            if name.split(".")[0] in CODE_BEARING and name != "pickle.UnpicklingError":
                yield f"line {node.lineno}: {name}"
        if not isinstance(node, ast.Call):
            continue
        name, keywords = dotted(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        if keywords.get("allow_pickle", "False") != "False":
            yield f"line {node.lineno}: allow_pickle={keywords['allow_pickle']}"
        if "False" in keywords.get("weights_only", "") or (name == "torch.load" and "weights_only" not in keywords):
            yield f"line {node.lineno}: {name} without weights_only=True"
        if keywords.get("trust_remote_code", "False") != "False" or keywords.get("shell", "False") != "False":
            yield f"line {node.lineno}: {name} runs code from outside"
        if name in {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system"}:
            yield f"line {node.lineno}: {name}"


def knows_no_machine(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"(?<![\w.:/])/(home|Users|root|work|mnt|scratch)/\w|\b[A-Z]:\\\w", line):
            yield f"line {number}: {line.strip()}"


SOURCE_RULES: list[Rule] = [
    has_short_functions,
    has_functions_of_few_parameters,
    says_what_it_takes,
    is_about_something,
    says_what_it_is,
    names_no_rank_specific_layer,
    has_no_rank_twins,
    does_not_branch_on_rank,
    imports_its_own_at_the_top,
    leaves_nothing_undone,
    runs_nothing_it_loads,
    knows_no_machine,
]
TEXT_RULES: list[Rule] = [leaves_nothing_undone, knows_no_machine]


def faults(rule: Rule, root: Path, files: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(root)}: {fault}"
        for path in files
        for fault in rule(path.relative_to(root), path.read_text(encoding="utf-8"))
    ]


def project_files() -> list[Path]:
    """Every text file of the project that is not source: tests, papers, configurations."""
    tops = [ROOT / name for name in ("src", "tests", "benchmarks", "docs", ".ci")]
    inside = [path for top in tops if top.is_dir() for path in top.rglob("*") if "__pycache__" not in path.parts]
    beside = [path for path in ROOT.iterdir() if not path.name.startswith(".") or path.suffix == ".yaml"]
    return sorted(path for path in {*inside, *beside} if path.is_file() and path.suffix in TEXT)


@pytest.mark.parametrize("rule", SOURCE_RULES, ids=lambda rule: rule.__name__)
def test_the_source(rule):
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20
    assert faults(rule, PACKAGE, files) == []


@pytest.mark.parametrize("rule", TEXT_RULES, ids=lambda rule: rule.__name__)
def test_everything_else(rule):
    files = project_files()
    assert ROOT / "README.md" in files
    assert Path(__file__).resolve() in files
    assert faults(rule, ROOT, files) == []


@pytest.mark.parametrize(
    ("rule", "name", "text"),
    [
        (has_short_functions, "a.py", "def f():\n" + "    x = 1\n" * LENGTH),
        (
            has_functions_of_few_parameters,
            "a.py",
            f"def f({', '.join(f'x{place}' for place in range(PARAMETERS + 1))}):\n    pass\n",
        ),
        (says_what_it_takes, "a.py", "def f(x):\n    return dict(locals())\n"),
        (is_about_something, "data/utils.py", '"""A."""\n'),
        (says_what_it_is, "a.py", "x = 1\n"),
        (names_no_rank_specific_layer, "nn/blocks.py", "layer = nn.Conv3d(1, 1, 1)\n"),
        (names_no_rank_specific_layer, "models/a.py", "from torch.nn import BatchNorm2d\n"),
        (names_no_rank_specific_layer, "models/a.py", "y = functional.avg_pool3d(x, 2)\n"),
        (names_no_rank_specific_layer, "models/a.py", "y = interpolate(x, mode='trilinear')\n"),
        (has_no_rank_twins, "models/a.py", "class UNet3D:\n    pass\n"),
        (has_no_rank_twins, "models/a.py", "def resize_2d(x):\n    pass\n"),
        (has_no_rank_twins, "models/a.py", "class UNetV2:\n    pass\n"),
        (does_not_branch_on_rank, "models/a.py", "if ndim == 3:\n    pass\n"),
        (does_not_branch_on_rank, "models/a.py", "x = 1 if 2 == self.ndim else 0\n"),
        (imports_its_own_at_the_top, "models/a.py", "def f():\n    from voxelry.tasks import base\n"),
        (imports_its_own_at_the_top, "models/a.py", "def f():\n    from . import b\n"),
        (leaves_nothing_undone, "a.py", "# TO" + "DO later\n"),
        (runs_nothing_it_loads, "a.py", "import pickle\n\nx = pickle.load(f)\n"),
        (runs_nothing_it_loads, "a.py", "from pickle import loads\n"),
        (runs_nothing_it_loads, "a.py", "np.load(path, allow_pickle=True)\n"),
        (runs_nothing_it_loads, "a.py", "torch.load(path)\n"),
        (runs_nothing_it_loads, "a.py", "torch.load(path, weights_only=False)\n"),
        (runs_nothing_it_loads, "a.py", "yaml.load(text)\n"),
        (runs_nothing_it_loads, "a.py", "eval(text)\n"),
        (knows_no_machine, "a.py", "root = '/ho" + "me/someone/data'\n"),
    ],
)
def test_each_rule_sees_what_breaks_it(rule, name, text, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    assert len(faults(rule, tmp_path, [path])) == 1


def test_each_rule_lets_a_sound_file_pass(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        '"""A sound module, which may say Conv3d in words."""\n\n'
        "import numpy as np\n\n\n"
        "def read(path, ndim):\n"
        '    """Read one array."""\n'
        "    return np.load(path, allow_pickle=False).reshape((-1,) * ndim)\n",
        encoding="utf-8",
    )
    assert [fault for rule in SOURCE_RULES for fault in faults(rule, tmp_path, [path])] == []


def modules() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(voxelry.__path__, "voxelry.")]
    return ["voxelry", *sorted(name for name in found if not name.endswith("__main__"))]


def undocumented(module: object) -> list[str]:
    """Public names of a module that don't exist, or are functions or classes without a docstring of their own."""
    wrong = []
    for name in getattr(module, "__all__", []):
        if not hasattr(module, name):
            wrong.append(f"{name} does not exist")
            continue
        value = getattr(module, name)
        if (inspect.isclass(value) or inspect.isroutine(value)) and not (value.__doc__ or "").strip():
            wrong.append(f"{name} has no docstring")
    return wrong


@pytest.mark.parametrize("name", modules())
def test_public_names_exist_and_are_documented(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("voxelry"):
            raise
        pytest.skip(f"{error.name} is not installed")
    assert undocumented(module) == []


def test_a_missing_or_undocumented_name_is_seen():
    class Module:
        __all__ = ("absent", "bare", "told")

        @staticmethod
        def bare():
            pass

        @staticmethod
        def told():
            """Told."""

    assert undocumented(Module) == ["absent does not exist", "bare has no docstring"]


HEAVY = (
    "monai",
    "matplotlib",
    "torchio",
    "lightning",
    "SimpleITK",
    "ray",
    "diffusers",
    "torchmetrics",
    "skimage",
    "peft",
)
HEAVIER = (*HEAVY, "torch", "scipy", "numba", "hydra")


def heavy_after(statement: str, heavy: tuple[str, ...] = HEAVY) -> list[str]:
    """Which of the heavy packages a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint(*sorted({set(heavy)!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import voxelry", HEAVIER),
        ("import voxelry.io, voxelry.serve.run, voxelry.engine.inputs, voxelry.bundle.settings", HEAVIER),
        ("import voxelry.viz.figures, voxelry.viz.report", HEAVY),
        ("from voxelry import predict, evaluate, load", ("lightning", "torchmetrics", "matplotlib")),
    ],
)
def test_importing_loads_nothing_heavy(statement, heavy):
    assert heavy_after(statement, heavy) == []


def test_a_heavy_import_is_seen():
    assert heavy_after("import matplotlib") == ["matplotlib"]
