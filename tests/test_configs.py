"""Config groups and their schemas: complete, documented, in range, and standing on the right floor of the house."""

import ast
import dataclasses
import math
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.utils import get_class
from omegaconf import OmegaConf

from sparsign.compressors.base import Compressor
from sparsign.configs import evaluation, options, schema
from sparsign.configs.options import allowed, check, near_match, option
from sparsign.pipeline import build

ROOT = Path(__file__).parent.parent
GROUPS = ("compressor", "model", "dataset", "trainer", "logger", "schedule")  # experiments: test_experiments.py
MEMBERS = [(group, path.stem) for group in GROUPS for path in sorted((ROOT / "configs" / group).glob("*.yaml"))]


# -- members of the groups ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group, member", MEMBERS)
def test_every_member_composes_with_the_defaults_and_is_in_range(group, member, configuration):
    config = configuration(f"{group}={member}")
    build.validate(config)
    build.plain(config)  # nothing mandatory is missing, everything resolves
    if group in ("compressor", "model", "dataset", "schedule"):
        assert config[group].name == member
    if "_target_" in config[group]:
        package = config[group]._target_.split(".")[1]
        assert (
            package
            == {"compressor": "compressors", "model": "models", "dataset": "datamodules", "logger": "pipeline"}[group]
        )


def test_evaluation_config_composes_with_the_defaults_of_its_schema():
    evaluation.register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("evaluate")
    check(OmegaConf.to_object(config), "")


def compressor_classes() -> dict[str, type]:
    """Module -> class of every method, found by reading the sources."""
    found = {}
    for path in (ROOT / "compressors").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and path.stem != "base":
                cls = get_class(f"sparsign.compressors.{path.stem}.{node.name}")
                if issubclass(cls, Compressor):
                    found[path.stem] = cls
    return found


METHODS = compressor_classes()


def test_every_method_has_a_schema_and_a_yaml_and_vice_versa():
    stored = {name.removesuffix(".yaml") for name in ConfigStore.instance().list("compressor/schema")}
    assert stored == set(METHODS)
    files = {path.stem: path for path in (ROOT / "configs" / "compressor").glob("*.yaml")}
    assert set(METHODS) <= set(files)
    for name, path in files.items():
        bases = [d for d in yaml.safe_load(path.read_text())["defaults"] if d != "_self_"]
        assert len(bases) == 1 and bases[0].removeprefix("schema/") in METHODS, f"{name} stands on {bases}"


@pytest.mark.parametrize("name", METHODS)
def test_yaml_of_a_method_says_what_its_class_does(name, configuration):
    config, cls = configuration(f"compressor={name}").compressor, METHODS[name]
    assert get_class(config._target_) is cls
    defaults = OmegaConf.structured(cls)
    different = {
        k: (config[k], defaults[k]) for k in defaults if k not in ("_target_", "name") and config[k] != defaults[k]
    }
    assert not different


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "compressor").glob("*.yaml")), ids=lambda path: path.stem)
def test_yaml_of_a_method_says_only_what_differs_from_its_class(path):
    """Options stand once: in the class. A file names its class (or the file it stands on), itself and what differs."""

    def given(name):
        node = yaml.safe_load((path.parent / f"{name}.yaml").read_text())
        (base,) = (d for d in node.pop("defaults") if d != "_self_")
        return node, base

    node, base = given(path.stem)
    ground = base
    while not ground.startswith("schema/"):
        ground = given(ground)[1]
    defaults = OmegaConf.structured(METHODS[ground.removeprefix("schema/")])
    assert node["name"] == path.stem and ("_target_" in node) == base.startswith("schema/")
    assert not [k for k, v in node.items() if k not in ("_target_", "name") and defaults[k] == v]


def test_no_method_imports_a_method():
    wrong = {}
    for path in (ROOT / "compressors").glob("*.py"):
        names = {name.removeprefix("compressors.").split(".")[0] for name in imported(path.read_text())}
        wrong[path.stem] = names & set(METHODS) - {path.stem}
    assert not any(wrong.values()), wrong


# -- options -----------------------------------------------------------------------------------------------------------

SCHEMAS = [
    cls
    for module in (schema, evaluation)
    for cls in vars(module).values()
    if dataclasses.is_dataclass(cls) and isinstance(cls, type) and not issubclass(cls, Compressor)
]


@pytest.mark.parametrize("cls", [*SCHEMAS, *METHODS.values()], ids=lambda cls: cls.__name__)
def test_every_option_has_a_help_line_and_a_default_in_range(cls):
    for field in dataclasses.fields(cls):
        nested = field.name == "compressor" or "Config" in str(field.type)
        if field.name != "_target_" and not nested:
            assert len(field.metadata.get("help", "")) > 5, f"{cls.__name__}.{field.name} has no help text"
            assert "\n" not in field.metadata["help"]
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if field.metadata and default is not None and not (isinstance(default, str) and default.startswith(("$", "?"))):
            values = (
                default.values() if isinstance(default, dict) else default if isinstance(default, list) else [default]
            )
            assert all(options._inside(v, field.metadata) for v in values), f"{cls.__name__}.{field.name}={default}"


@dataclasses.dataclass
class Inner:
    depth: int = option(1, "depth", ge=1)


@dataclasses.dataclass
class Sample:
    ratio: float = option(0.5, "ratio", ge=0, lt=1)
    rate: float = option(0.1, "rate", gt=0, le=2)
    kind: str = option("a", "kind", choices=("a", "b"))
    limit: int | None = option(None, "limit", ge=1)
    sizes: list[int] = option([1], "sizes", ge=1)
    ratios: dict[str, float] = option({}, "ratios", ge=0, lt=1)
    free: float = option(0.0, "free")
    flag: bool = option(False, "flag")
    text: str = option("", "text")
    inner: Inner = dataclasses.field(default_factory=Inner)


@pytest.mark.parametrize(
    "name, value",
    [("ratio", 0), ("ratio", 0.999), ("rate", 2), ("rate", 1e-30), ("kind", "b"), ("limit", None), ("limit", 1),
     ("sizes", []), ("sizes", [1, 9]), ("sizes", (2,)), ("ratios", {"a": 0.0, "b": 0.9}), ("free", -1e9),
     ("flag", True), ("text", "anything"), ("inner", Inner(3))],
)  # fmt: skip
def test_values_in_range_pass(name, value):
    check(Sample(**{name: value}), "x")


@pytest.mark.parametrize(
    "name, value, said",
    [("ratio", 1, "x.ratio=1: expected a value in [0, 1)"), ("ratio", -0.1, "x.ratio=-0.1"),
     ("ratio", math.nan, "x.ratio=nan: expected a value in [0, 1)"),
     ("rate", 0, "x.rate=0: expected a value in (0, 2]"), ("rate", 2.5, "x.rate=2.5"),
     ("kind", "c", "x.kind=c: expected a value in a | b"), ("kind", None, "x.kind=None"),
     ("limit", 0, "x.limit=0: expected a value in [1, inf)"),
     ("sizes", [4, 0], "x.sizes=0: expected a value in [1, inf)"),
     ("ratios", {"a": 0.5, "b": 1.0}, "x.ratios.b=1.0: expected a value in [0, 1)"),
     ("free", math.nan, "x.free=nan: expected a value in (-inf, inf)"), ("free", math.inf, "x.free=inf"),
     ("inner", Inner(0), "x.inner.depth=0: expected a value in [1, inf)")],
)  # fmt: skip
def test_values_out_of_range_are_named_with_what_is_allowed(name, value, said):
    with pytest.raises(ValueError) as caught:
        check(Sample(**{name: value}), "x")
    assert str(caught.value).startswith(said)


def test_prefix_may_be_empty():
    with pytest.raises(ValueError, match=r"^inner\.depth=0: "):
        check(Sample(inner=Inner(0)), "")


@pytest.mark.parametrize(
    "limits, shown",
    [({"ge": 0, "lt": 1}, "[0, 1)"), ({"gt": 0, "le": 1}, "(0, 1]"), ({"ge": 1}, "[1, inf)"), ({"lt": 2}, "(-inf, 2)"),
     ({"le": 0.5}, "(-inf, 0.5]"), ({"gt": 0}, "(0, inf)"), ({}, "(-inf, inf)"), ({"choices": ("x", 4)}, "x | 4")],
)  # fmt: skip
def test_allowed_values_are_written_as_intervals_or_choices(limits, shown):
    @dataclasses.dataclass
    class One:
        value: float = option(1, "value", **limits)

    assert allowed(dataclasses.fields(One)[0].metadata) == shown


def test_list_and_mapping_defaults_are_not_shared():
    first, second = Sample(), Sample()
    first.sizes.append(7)
    first.ratios["a"] = 0.1
    assert second.sizes == [1] and second.ratios == {} and Sample().sizes == [1]


def test_near_match_offers_the_nearest_or_nothing():
    assert near_match("prf", ["form", "pfr", "beta"]) == " (did you mean pfr?)"
    assert near_match("resnet81", ["resnet18", "vgg11"]) == " (did you mean resnet18?)"
    assert near_match("zzz", ["form", "pfr"]) == "" and near_match("pfr", []) == ""


# -- floors ------------------------------------------------------------------------------------------------------------

GROUND = {"models", "datamodules", "papers"}
PACKING = {"packing", "compressors", "configs"} | GROUND
UPPER = {"pipeline", "kernels", "evaluation", "reports"} | PACKING
FLOORS = {
    "models": {"models"},
    "datamodules": {"datamodules"},
    "papers": {"papers"},
    "configs": {"configs", "models"},
    "compressors": {"compressors", "configs", "models"},
    "packing": {"packing", "models"},
    "kernels": {"kernels", "packing"},
    "export": {"export", "kernels", "packing"},
    "pipeline": {"pipeline", "kernels"} | PACKING,
    "evaluation": UPPER - {"reports"},
    "reports": UPPER,
    "train.py": UPPER,
    "evaluate.py": UPPER,
}
OURS = {name.removesuffix(".py") for name in FLOORS} | {"tests", "benchmarks"}


def imported(source: str) -> list[str]:
    """Dotted names of everything of ours that a source imports, wherever in it the statement stands."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    assert not [n for n in names if n.split(".")[0] in OURS - {"tests", "benchmarks"}], "without sparsign"
    return [n.removeprefix("sparsign.") for n in names if n.split(".")[0] in {"sparsign", "tests", "benchmarks"}]


def climbs(source: str, floors: set[str]) -> list[str]:
    """Imports of a source that are not on the floors it may stand on."""
    return [n for n in imported(source) if not any(n == floor or n.startswith(f"{floor}.") for floor in floors)]


@pytest.mark.parametrize("part", FLOORS)
def test_imports_only_go_down(part):
    paths = [ROOT / part] if part.endswith(".py") else sorted((ROOT / part).rglob("*.py"))
    assert paths and all(path.is_file() for path in paths)
    wrong = {str(path.relative_to(ROOT)): found for path in paths if (found := climbs(path.read_text(), FLOORS[part]))}
    assert not wrong


def test_no_two_modules_import_each_other_in_a_circle():
    sources = [*ROOT.glob("*.py"), *(p for room in FLOORS for p in (ROOT / room).rglob("*.py"))]
    uses = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): imported(path.read_text())
        for path in sources
    }
    graph = {m: {n if n in uses else n.rpartition(".")[0] for n in names} & set(uses) for m, names in uses.items()}
    order = list(TopologicalSorter(graph).static_order())  # or CycleError, which names the circle
    assert order.index("models.graph") < order.index("packing.trace") < order.index("pipeline.pack")
    assert order.index("evaluation.report") < order.index("reports.record") < len(order) == len(graph)


def test_every_room_has_its_floor_and_is_in_the_wheel():
    """Beside tests and benchmarks, which are not installed."""
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    folders = {str(p.parent.relative_to(ROOT)) for room in rooms for p in (ROOT / room).rglob("__init__.py")}
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(listed) == {"sparsign"} | {f"sparsign.{folder.replace('/', '.')}" for folder in folders}
    assert rooms == {room for room in FLOORS if not room.endswith(".py")}


def test_climbing_imports_are_seen():
    assert climbs("def f():\n    from sparsign.pipeline import build", FLOORS["compressors"]) == ["pipeline.build"]
    assert climbs("import sparsign.packing.file", FLOORS["compressors"]) == ["packing.file"]
    assert climbs("from sparsign import packing, models", FLOORS["kernels"]) == ["models"]
    assert climbs("from sparsign.packings import x", FLOORS["kernels"]) == ["packings.x"]
    assert climbs("import torch\nfrom sparsign.models.sign import Sign", FLOORS["packing"]) == []
    assert climbs("from tests.tiny import TinyImages", FLOORS["train.py"]) == ["tests.tiny.TinyImages"]
