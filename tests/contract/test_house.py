"""The promises between the parts: one word a stage, a light start, honest dependencies, documents that name real things."""

import ast
import importlib.util
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.cli import STAGES
from components.settings import Params

ROOT = Path(__file__).parents[2]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
HEAVY = ("torch", "transformers", "prefect", "mlflow", "dvc", "great_expectations", "pandas", "pyarrow", "numpy")
ORCHESTRATION = ("prefect", "mlflow", "dvc", "great_expectations")
# What a GPU machine runs.
COMPUTING = ("train", "prm", "evaluate", "perception", "sft", "checkpoints", "engines.hf", "score", "rewards", "pooling")
# Errors, progress lines and receipts decide no output.
UNTRACKED = {"components", "components.errors", "components.progress", "components.lineage"}
MADE_BY_RUNNING = ("artifacts/", "data/", ".stepforge/", ".venv/", ".venv-vllm/", ".venv-deepspeed/")


def tracked() -> list[Path]:
    """The files of the repository: what git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_a_stage_has_one_word_everywhere():
    shared = {"seed", "task", "verify"}
    sections = [name for name in Params.model_fields if name not in shared]
    written = [name for name in yaml.safe_load((ROOT / "params.yaml").read_text()) if name not in shared]
    assert list(STAGES) == list(DVC) == sections == written
    for name in STAGES:
        tree = ast.parse((ROOT / f"components/{name}.py").read_text())
        assert "run" in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert ast.get_docstring(tree).startswith(f"Stage `{name}`")


@pytest.mark.parametrize("name", DVC)
def test_a_dvc_stage_calls_its_verb_with_the_flags_it_has(name):
    stage = DVC[name]
    words = stage["cmd"].split()
    assert words[:4] == ["python", "-m", "components", name]
    flags = {arg.flag: arg for arg in STAGES[name].args}
    given = [word for word in words if word.startswith("--")]
    assert set(given) <= {*flags, "--out"}
    assert {flag for flag, arg in flags.items() if not arg.optional} <= set(given)
    values = [word.rpartition("=")[2] for word in words[4:] if not word.startswith("--")]
    assert stage["outs"] == [words[words.index("--out") + 1]]
    assert set(values) - set(stage["outs"]) == {dep for dep in stage["deps"] if not dep.startswith("components/")}
    assert stage["desc"] == STAGES[name].help


@pytest.mark.parametrize("name", DVC)
def test_the_code_that_a_stage_depends_on_is_what_it_imports(name):
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("components", cache_dir=None)
    module = f"components.{name}"
    modules = {module} | graph.find_upstream_modules(module)
    paths = {m: Path(importlib.util.find_spec(m).origin).relative_to(ROOT).as_posix() for m in modules - UNTRACKED}
    assert [dep for dep in DVC[name]["deps"] if dep.startswith("components/")] == sorted(paths.values())


@pytest.mark.parametrize("name", DVC)
def test_the_settings_that_a_stage_depends_on_are_settings(name):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for dotted in DVC[name]["params"]:
        inside = params
        for key in dotted.split("."):
            assert key in inside, dotted
            inside = inside[key]
    assert name in DVC[name]["params"]


@pytest.mark.parametrize("program", ["flows.cli", "components"])
def test_help_imports_nothing_heavy_and_comes_at_once(program):
    code = (
        "import runpy, sys\n"
        "program, *heavy = sys.argv[1:]\n"
        "sys.argv = [program, '--help']\n"
        "try:\n    runpy.run_module(program, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "print('HEAVY', [name for name in heavy if name in sys.modules])"
    )
    done = python(code, program, *HEAVY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert all(f"    {name}" in done.stdout for name in STAGES)

    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", program, "--help"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) <= 0.6  # of processor time: a busy machine is no fault of ours


def test_training_and_scoring_import_without_the_orchestration():
    code = (
        "import importlib, sys\n"
        "blocked = set(sys.argv[1].split(','))\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in blocked:\n"
        "            raise ImportError(f'{name} is not installed here')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(f'components.{name}')\n"
    )
    done = python(code, ",".join(ORCHESTRATION), *COMPUTING)
    assert done.returncode == 0, done.stderr
    assert python(code, "torch", "prm").returncode == 1  # the block does block


def test_training_and_scoring_reach_no_orchestration_even_inside_a_function():
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("components", include_external_packages=True, cache_dir=None)
    for name in COMPUTING:
        reached = graph.find_upstream_modules(f"components.{name}") & {*ORCHESTRATION, "components.expectations"}
        assert not reached, name
    assert "components.expectations" in graph.find_upstream_modules("components.rollout")  # where the gates may be
    assert "mlflow" in graph.find_upstream_modules("components.tracking")
    everywhere = {m for m in graph.modules if graph.find_modules_directly_imported_by(m) & {"prefect", "dvc"}}
    assert not everywhere


@pytest.mark.parametrize("package", ["components", "flows"])
def test_every_module_says_what_it_owns(package):
    paths = sorted((ROOT / package).rglob("*.py"))
    assert len(paths) > 3
    for path in paths:
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        assert docstring, path
        assert docstring[0].isupper() or docstring[0] == "`", path


def test_every_yaml_and_toml_file_loads():
    import tomllib

    paths = tracked()
    suffixes = (".yaml", ".yml", ".dvc", ".lock", ".cff")
    loaded = [path for path in paths if path.suffix in suffixes and not path.name.startswith("requirements")]
    for path in loaded:
        assert yaml.safe_load(path.read_text()), path
    assert {"params.yaml", "dvc.yaml", "data.dvc", "policy.yaml"} <= {path.name for path in loaded}
    for path in paths:
        if path.suffix == ".toml":
            assert tomllib.loads(path.read_text()), path


def test_the_folder_named_mlflow_hides_no_package():
    assert not list((ROOT / "mlflow").rglob("__init__.py"))  # a file that is loaded by its path hides nothing
    spec = importlib.util.find_spec("mlflow")
    assert spec is None or spec.origin is not None  # a package with an __init__, not our folder


def test_no_file_names_a_registry_or_runs_remote_code():
    hosts = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("anaconda", "org"), ("npmjs", "org"))]
    hosts += ["".join(("down", "load.pytorch.org")), "".join(("--index", "-url")), "".join(("--extra-index", "-url"))]
    remote = "=".join(("trust_remote_code", "True"))
    for path in tracked():
        content = path.read_bytes()
        for forbidden in (*hosts, remote):
            assert forbidden.encode() not in content, f"{path.relative_to(ROOT)} holds {forbidden}"


def mentioned_paths(text: str) -> list[str]:
    """Paths in backticks and in links, outside of code blocks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    in_ticks = [word for span in re.findall(r"`([^`\n]+)`", prose) for word in span.split()[:1] if "/" in word]
    links = [target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target]
    return [word.partition("#")[0].partition(":")[0].rstrip(".,") for word in (*in_ticks, *links)]


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/decisions.md",
        "docs/log.md",
        "docs/paper.md",
        "docs/training.md",
        "mlflow/README.md",
    ],
)
def test_documents_name_files_that_exist(name):
    path = ROOT / name
    text = path.read_text()
    if name == "README.md" and len(text) < 200:
        pytest.skip("the README is a stub")
    missing = []
    for mentioned in mentioned_paths(text):
        made = mentioned.startswith(MADE_BY_RUNNING)
        if not made and not any((place / mentioned).exists() for place in (ROOT, path.parent, ROOT / "tests")):
            missing.append(mentioned)
    assert missing == []


def test_the_tree_in_the_readme_names_every_module():
    text = (ROOT / "README.md").read_text()
    if len(text) < 200:
        pytest.skip("the README is a stub")
    tree = re.search(r"^## The tree\n+```\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    words = set(re.findall(r"[\w.]+", tree[1]))
    modules = {path.stem for path in (ROOT / "components").iterdir() if path.suffix == ".py" or path.is_dir()}
    unnamed = {name for name in modules if not name.startswith("_")} - {"cli"} - words
    assert unnamed == set()


def defined(module: Path) -> set[str]:
    """The names that a module defines, methods as `Class.method`."""
    names = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def test_the_functions_that_the_paper_page_names_are_there():
    page = (ROOT / "docs/paper.md").read_text()
    modules = {path.stem: defined(path) for path in (ROOT / "components").glob("*.py")}
    everywhere = set().union(*modules.values())
    named = 0
    for row in re.findall(r"^\|.*\|$", page, flags=re.MULTILINE)[2:]:
        for name in re.findall(r"`([a-z]\w*\.\w[\w.]*|[A-Z]\w*\.\w+)`", row.split("|")[3]):
            module, _, inside = name.partition(".")
            if name.endswith(".json"):
                continue
            assert inside in modules[module] if module in modules else name in everywhere, name
            named += 1
    assert named > 10


def test_a_hint_names_files_that_exist():
    """Paths in the hints and messages of the code."""
    for path in sorted((ROOT / "components").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for name in re.findall(r"(?<![\w/])(?:components|docs|flows|tests|infra)/[\w/]+\.\w+", node.value):
                    assert (ROOT / name).exists(), f"{path.name} names {name}"
