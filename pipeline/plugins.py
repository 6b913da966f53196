"""Networks, data sets and methods from outside this repository.

A plugin is a folder of YAML files laid out as `configs/` (`model/`, `dataset/`, `compressor/`, ...), whose
`_target_`s name Python that can be imported. It comes from an installed package, which names itself in the entry point
group `sparsign.plugins` and has a folder `configs` in it, or from the command line: `--config-dir FOLDER`, or
`hydra.searchpath=[file://FOLDER]`. A packed file names networks and data sets by their YAML files, as it does ours.
"""

from __future__ import annotations

import argparse
import os
import re
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.utils import get_class

from sparsign.compressors.base import Compressor
from sparsign.configs import members
from sparsign.datamodules import registry as datasets
from sparsign.models import registry as models

GROUP = "sparsign.plugins"
ASKED = "SPARSIGN_CONFIGS"
"""Environment variable with the folders of this command, for the processes that a launcher starts."""


class OutsideConfigs(SearchPathPlugin):
    """Hydra looks into the plugins' folders after our own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in members.FOLDERS[1:]:
            search_path.append("sparsign plugin", f"file://{folder}")


def from_arguments(arguments: list[str]) -> list[str]:
    """Notes the folders that the command line names, and returns it without `--config-dir`.

    Raises:
        ValueError: a folder that is not there.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--cfg", "-c")  # Hydra's; argparse would take it for the beginning of -cd
    asked, rest = parser.parse_known_args(arguments)
    rest += ["--cfg", asked.cfg] if asked.cfg else []
    named = [asked.config_dir] if asked.config_dir else []
    for argument in rest:
        if found := re.fullmatch(r"hydra\.searchpath=\[(.*)\]", argument):
            named += [_folder_of(place.strip(" '\"")) for place in found[1].split(",")]
    for folder in named:
        if not Path(folder).is_dir():
            raise ValueError(f"--config-dir {folder}: expected a folder laid out as configs/")
    if named:
        os.environ[ASKED] = os.pathsep.join(str(Path(folder).resolve()) for folder in named)
    return rest


def _folder_of(place: str) -> str:
    """The folder of `file://...` or `pkg://...`."""
    kind, _, name = place.rpartition("://")
    return _package_folder(name) if kind == "pkg" else name


def _package_folder(name: str) -> str:
    """Where a package lies. Raises ValueError for a name that is none."""
    try:
        found = find_spec(name)
    except ImportError as error:
        raise ValueError(f"{name}: cannot be imported ({error})") from error
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"{name}: expected the name of a package that can be imported")
    return next(iter(found.submodule_search_locations))


def register() -> None:
    """Makes known what the plugins hold: Hydra finds their YAML files, packed files their names, options their types.

    Raises:
        ValueError: a plugin without configs, one that cannot be imported, or whose names are ours; one line.
    """
    folders = [Path(folder) for folder in os.environ.get(ASKED, "").split(os.pathsep) if folder]
    for point in entry_points(group=GROUP):
        folder = Path(_package_folder(point.value)) / "configs"
        if not folder.is_dir():
            raise ValueError(f"plugin {point.name} ({point.value}): expected a folder {folder}")
        folders.append(folder)
    for folder in folders:
        if folder not in members.FOLDERS:
            _check_names(folder)
            members.FOLDERS.append(folder)
            members.targets.cache_clear()
            _register(folder)
    Plugins.instance().register(OutsideConfigs)


def _check_names(folder: Path) -> None:
    """A file that has the name of one of ours would never be read."""
    for path in sorted(folder.glob("*/*.yaml")):
        if path.parent.name != "hydra" and any((f / path.relative_to(folder)).is_file() for f in members.FOLDERS):
            raise ValueError(f"{path}: {path.parent.name}={path.stem} is there already; expected another name")


def _register(folder: Path) -> None:
    for registry, group in ((models, "model"), (datasets, "dataset")):
        registry.OUTSIDE.update(members.targets_in(folder, group))
    for name, target in members.targets_in(folder, "compressor").items():
        path = folder / "compressor" / f"{name}.yaml"
        try:
            cls = get_class(target)
        except Exception as error:  # whatever the module's own code raises
            cause = str(error.__cause__ or error).splitlines()[0]
            raise ValueError(f"{path}: _target_={target} cannot be imported ({cause})") from error
        if not issubclass(cls, Compressor):
            raise ValueError(f"{path}: _target_={target}: expected a subclass of sparsign.compressors.base.Compressor")
        ConfigStore.instance().store(group="compressor/schema", name=name, node=cls, package="compressor")
