"""Starting: help, version, and what is loaded for them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from weightsmith.cli.main import COMMANDS
from weightsmith.version import __version__

# What a recipe of dense checkpoints and one method has no use for.
UNUSED_PACKAGES = {
    *"difflib huggingface_hub jinja2 matplotlib PIL ray rich safetensors scipy".split(),
    *"tokenizers torch transformers".split(),
}
UNUSED_MODULES = """
    adapters.adapter_reading adapters.attaching
    checkpoints.formats.bundles checkpoints.formats.packages checkpoints.formats.statistic_tensors
    engine.outputs.adapter_output engine.outputs.bundle_output engine.planning.adapter_plan
    engine.running.ray_cluster engine.records.verify engine.records.rollback
    graph.backends.torch_backend
    inspection.explanation inspection.method_facts inspection.vocabulary_summary
    patterns.matching patterns.syntax
    recipes.language.expression_reading recipes.language.expressions recipes.language.export
    recipes.language.free_calls recipes.language.value_files recipes.resolution.tokenizers
    tensors.compressed tensors.pickles.pickle_reader
    tokenizers.tokenizer_library tokenizers.union tokenizers.vocabulary
    vocabularies.rules vocabularies.maps vocabularies.table_alignment
""".split()
HEAVY = {"numpy", "pydantic", "ray", "rich", "torch", "transformers", "yaml"}


def fresh(program):
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return json.loads(finished.stdout.splitlines()[-1])


def test_help_answers_within_a_fifth_of_a_second_of_cpu():
    program = (
        "import json, time, contextlib, io\n"
        "from weightsmith.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "print(json.dumps(time.process_time()))"
    )
    assert min(fresh(program) for _ in range(3)) < 0.2


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
)
def test_help_loads_nothing_heavy(arguments):
    program = (
        "import json, sys, contextlib, io\n"
        "from weightsmith.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    main({arguments!r})\n"
        "print(json.dumps([n.partition('.')[0] for n in sys.modules]))"
    )
    assert not set(fresh(program)) & HEAVY


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize("command", [["plan", "ties.yaml"], ["merge", "ties.yaml", "out"]])
def test_a_recipe_loads_its_own_method_and_none_of_what_it_does_not_use(command):
    program = (
        "import json, sys\n"
        "from weightsmith.cli.main import execute\n"
        f"assert execute({command!r}) == 0\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    loaded = fresh(program)
    methods = {name for name in loaded if name.startswith("weightsmith.methods.")}
    shared = "method_index registry modifiers task_vectors ties_elsewhere span matrices named_roles".split()
    own = ("conflicts", "conflicts.ties", "parts", *(f"parts.{name}" for name in shared))
    assert methods <= {f"weightsmith.methods.{name}" for name in own}
    rooms = {".".join(name.split(".")[:2]) for name in loaded}
    assert not rooms & {
        f"weightsmith.{room}" for room in ("comparison", "evaluation", "reports", "testbeds")
    }
    assert not {name.partition(".")[0] for name in loaded} & UNUSED_PACKAGES
    assert not set(loaded) & {f"weightsmith.{module}" for module in UNUSED_MODULES}


@pytest.mark.usefixtures("family")
def test_collections_do_not_look_at_modules_and_plan_which_stay():
    program = (
        "import gc, json\n"
        "from weightsmith.cli.main import execute\n"
        "looked_at = [0]\n"
        "def count(phase, info):\n"
        "    if phase == 'start':\n"
        "        young = range(info['generation'] + 1)\n"
        "        looked_at.append(sum(len(gc.get_objects(generation=g)) for g in young))\n"
        "gc.callbacks.append(count)\n"
        "assert execute(['merge', 'ties.yaml', 'out']) == 0\n"
        "gc.callbacks.remove(count)\n"
        "print(json.dumps([max(looked_at), gc.get_freeze_count()]))"
    )
    most, kept = fresh(program)
    assert most < kept / 2


@pytest.mark.usefixtures("family")
@pytest.mark.parametrize(("wanted", "threads"), [(None, 1), ("2", 2)])
def test_a_merge_starts_one_thread_of_linear_algebra_unless_it_is_told_otherwise(
    monkeypatch, wanted, threads
):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    if wanted is not None:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", wanted)
    program = (
        "import json\n"
        "from threadpoolctl import threadpool_info\n"
        "from weightsmith.cli.main import execute\n"
        "assert execute(['merge', 'ties.yaml', 'out']) == 0\n"
        "found = threadpool_info()\n"
        "print(json.dumps([f['num_threads'] for f in found if f['internal_api'] == 'openblas']))"
    )
    assert set(fresh(program)) <= {threads}


def test_the_modules_that_a_recipe_does_not_load_are_there():
    assert not [m for m in UNUSED_MODULES if find_spec(f"weightsmith.{m}") is None]


def test_help_lists_every_command_with_a_sentence(weightsmith):
    result = weightsmith("--help")
    assert result.code == 0
    for name in COMMANDS:
        line = next(line for line in result.out.splitlines() if line.startswith(f"  {name} "))
        assert line.endswith(".")


def test_no_arguments_show_the_help(weightsmith):
    assert weightsmith().out == weightsmith("--help").out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(weightsmith, name):
    result = weightsmith(name, "--help")
    assert result.code == 0
    assert f"  weightsmith {name}" in result.out.partition("Examples:")[2]


def test_the_version_is_the_packages(weightsmith):
    assert weightsmith("--version").out == f"weightsmith {__version__}\n"


def test_the_module_and_the_entry_point_are_one_command(family, shell):
    assert shell("--version", cwd=family).out == f"weightsmith {__version__}\n"


def test_an_interruption_while_the_command_is_imported_is_one_line():
    program = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from weightsmith.cli import main\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 130
    assert finished.stderr == "weightsmith: interrupted.\n"
