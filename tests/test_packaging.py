"""What the packaging files promise each other."""

import importlib.util
import re
from pathlib import Path

import mmtbx_sfdiff

import libtbx.env_config
import libtbx.load_env
import pytest
from libtbx.path import absolute_path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest brings tomli there
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# pip's name -> conda-forge's, where they differ
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "playwright": "playwright-python"}
NOT_ON_CONDA_FORGE = ("normflows", "coot-headless-api")  # pip installs them, without their dependencies


def split(requirement):
    """'Torch >=2.4; platform_system == "Linux"' -> ('torch', '>=2.4')"""
    name, versions = re.fullmatch(r"\s*([\w.-]+)\s*([^;]*).*", requirement).groups()
    return name.lower(), versions.replace(" ", "")


def test_conda_environment_agrees_with_pyproject():
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "conda-env.yml").read_text()
    environment = yaml.safe_load(text)
    assert environment["name"] == PROJECT["name"] and environment["channels"] == ["conda-forge"]
    conda = dict(split(item) for item in environment["dependencies"])
    extras = PROJECT["optional-dependencies"]
    pip = dict(split(item) for item in PROJECT["dependencies"] + extras["cctbx"] + extras["test"])
    expected = {CONDA_NAMES.get(name, name): versions for name, versions in pip.items()}
    for name in NOT_ON_CONDA_FORGE:
        requirement = '"%s%s"' % (name, expected.pop(name))
        assert requirement in next(line for line in text.splitlines() if "pip install --no-deps" in line)
    expected["python"] = PROJECT["requires-python"]
    for tool in ("pip", "setuptools"):  # what installs the package itself
        assert tool in conda
        conda.pop(tool)
    assert conda == expected


def test_the_conda_recipe_agrees_with_pyproject():
    yaml = pytest.importorskip("yaml")
    recipe = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text())
    assert recipe["context"]["version"] == mmtbx_sfdiff.__version__ and recipe["build"]["noarch"] == "python"
    expected = {CONDA_NAMES.get(name, name): versions for name, versions in map(split, PROJECT["dependencies"])}
    expected["python"] = PROJECT["requires-python"]
    assert dict(map(split, recipe["requirements"]["run"])) == expected
    extra = {
        CONDA_NAMES.get(name, name): versions
        for name, versions in map(split, PROJECT["optional-dependencies"]["cctbx"])
    }
    limits = dict(map(split, recipe["requirements"]["run_constraints"]))
    assert limits == {name: versions for name, versions in extra.items() if versions}
    scripts = [f"{name} = {target}" for name, target in PROJECT["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts
    assert recipe["about"]["summary"] == PROJECT["description"] and recipe["about"]["license"] == PROJECT["license"]


def test_tests_need_the_optional_libraries_in_the_same_versions():
    extras = PROJECT["optional-dependencies"]
    assert set(extras["latent"]) <= set(extras["test"])


def test_documentation_repeats_the_range_of_torch():
    torch = next(item for item in PROJECT["dependencies"] if split(item)[0] == "torch")
    quoted = re.findall(r'"(torch[^"]*)"', (ROOT / "docs" / "installation.rst").read_text())
    assert quoted and set(quoted) == {torch}


def test_readme_has_the_two_commands_that_ci_runs():
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) == 2 and all(block.count("\n") == 1 for block in blocks)
    assert "pip install" in blocks[0] and "pytest" in blocks[1]


@pytest.mark.skipif(libtbx.env.build_path is None, reason="no libtbx build")
def test_libtbx_finds_the_package_and_its_commands():
    module = libtbx.env_config.module(env=libtbx.env, name="mmtbx_sfdiff", dist_path=absolute_path(str(ROOT)))
    module.process_libtbx_config()
    assert module.required_for_use == ["mmtbx"]
    assert [abs(path) for path in module.assemble_pythonpath()] == [str(ROOT)]
    commands = [abs(path) for path in module.command_line_directory_paths()]
    assert commands == [str(ROOT / "mmtbx_sfdiff" / "command_line")]


def test_every_console_script_is_a_libtbx_dispatcher_too():
    for name, target in PROJECT["scripts"].items():
        source = ROOT / (target.split(":")[0].replace(".", "/") + ".py")
        assert "# LIBTBX_SET_DISPATCHER_NAME %s\n" % name in source.read_text()[:1000], source
        assert target.endswith(":run") and "\ndef run(" in source.read_text()


def test_version_is_read_from_the_package():
    assert "version" not in PROJECT and re.fullmatch(r"\d+\.\d+\.\d+", mmtbx_sfdiff.__version__)
    assert "## " + mmtbx_sfdiff.__version__ in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "docs/validation.rst", ".github/workflows/audit.yml"])
def test_commands_of_the_validation_suite_exist(name):
    """Every one that is shown is one that its parser takes."""
    from validation.__main__ import parser

    commands = re.findall(r"python -m validation (select|run|report|audit)\b([^`\n]*)", (ROOT / name).read_text())
    for command, rest in commands:
        words = [re.sub(r"\W", "", word) or "1" if "$" in word else word for word in rest.split()]
        words = [re.sub("ENTRIES|GITHUB_RUN_NUMBER", "1", word) for word in words]
        if "--help" not in words and rest.strip():
            assert parser({command}).parse_args([command, *words]).run
    assert commands or name == "README.md"


def test_workflows_are_valid():
    yaml = pytest.importorskip("yaml")
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        workflow = yaml.safe_load(path.read_text())
        # YAML 1.1 takes the key "on" for a truth value.
        assert workflow[True] and all(job["steps"] and job["timeout-minutes"] for job in workflow["jobs"].values())
        installed = " ".join(step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"])
        ranges = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
        assert any(item in installed for item in ranges if split(item)[0] == "torch")


def test_lowest_versions_are_those_declared():
    import importlib.util

    spec = importlib.util.spec_from_file_location("lowest", ROOT / ".github" / "lowest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.lowest(
        ["torch>=2.4,<2.14", "numpy", "a-b >= 1.3.3rc1", "gemmi>=0.7; python_version > '3'"], {"torch"}
    )
    assert found == ["a-b==1.3.3rc1", "gemmi==0.7.*"]


def test_citation_names_the_version():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mmtbx_sfdiff.__version__ and citation["license"] == PROJECT["license"]


def test_every_verb_is_a_console_script(capsys):
    from mmtbx_sfdiff.command_line import main

    scripts = {name.partition(".")[2] for name in PROJECT["scripts"]}
    assert scripts == {"", *main.VERBS}
    assert main.run([]) == 0 and main.run(["nonsense"]) == 2
    printed = capsys.readouterr()
    assert all(f"mmtbx_sfdiff.{verb} " in printed.out for verb in main.VERBS) and "no program nonsense" in printed.err
    assert main.run(["--version"]) == 0
    assert f"mmtbx_sfdiff {mmtbx_sfdiff.__version__}\n" in capsys.readouterr().out


@pytest.mark.parametrize("program, missing, extra", [("compare", "iotbx", "cctbx"), ("latent", "openmm", "latent")])
def test_a_program_without_its_libraries_says_which_extra_it_wants(monkeypatch, capsys, program, missing, extra):
    from mmtbx_sfdiff import command_line

    def not_there(name):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=f"{missing}.part")

    monkeypatch.setattr(command_line.importlib, "import_module", not_there)
    with pytest.raises(SystemExit) as end:
        command_line.load(program)
    said = capsys.readouterr().err
    assert end.value.code == 1 and said.count("\n") == 1
    assert said.startswith(f"Sorry: mmtbx_sfdiff.{program} needs ") and f"mmtbx_sfdiff[{extra}]" in said


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "api.rst").read_text()
    assert [name for name in mmtbx_sfdiff.__all__ if not re.search(rf"mmtbx_sfdiff\.{name}\b", text)] == []
    rooms = re.findall(r"^``([a-z_.]+)`` \(:doc:`\w+`\)\n((?:    .*\n)+)", text, flags=re.MULTILINE)
    assert len(rooms) > 10
    for room, listing in rooms:
        if room == "interop.jax" and importlib.util.find_spec("jax") is None:
            continue
        module = importlib.import_module(f"mmtbx_sfdiff.{room}")
        names = re.findall(r"``(\w+)``", listing)
        assert all(hasattr(module, name) for name in names), room
        assert not hasattr(module, "__all__") or sorted(names) == sorted(module.__all__), room


def test_files_that_the_pages_name_are_there():
    missing = []
    for page in [*sorted((ROOT / "docs").glob("*.rst")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        text = page.read_text()
        for name in re.findall(
            r"(?<![\w/.])(?:tests|validation|docs|mmtbx_sfdiff)/[\w/]*\w(?:\.(?:py|rst|toml|csv|png|json))?", text
        ):
            # figures are named without their ending, and some names stand for any
            known = list((ROOT / name).parent.glob(Path(name).name + "*")) or re.search(r"/(NAME|ROOM|_build)\b", name)
            if not known:
                missing.append(f"{page.name}: {name}")
        for name in re.findall(r"-m (validation(?:\.\w+)*)", text):
            place = ROOT / name.replace(".", "/")
            if not (place.is_dir() or place.with_suffix(".py").exists()):
                missing.append(f"{page.name}: {name}")
    assert missing == []
