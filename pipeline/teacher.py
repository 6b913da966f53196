"""The float network whose logits a distilled stage follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from sparsign.configs.members import targets
from sparsign.models.cutting import cut
from sparsign.pipeline import build
from sparsign.pipeline.folder import RunFolder, load_plain, read_mapping
from sparsign.pipeline.plan import StagePlan

NO_TEACHER = "schedule.*.distill needs schedule.teacher=<file>: this run trains no float network first"


def check_teacher(config: DictConfig, folder: RunFolder, plan: list[StagePlan]) -> None:
    """Raises what `build_teacher` would, before the first stage instead of at the one that is distilled."""
    _other_network(config)
    if any(stage.distill > 0 and stage.recipe.epochs for stage in plan):
        if config.schedule.teacher:
            build_teacher(config, folder)
        elif config.model.form != "float" or plan[0].stage.kind != "pretrain" or plan[0].distill > 0:
            raise ValueError(NO_TEACHER)


def build_teacher(config: DictConfig, folder: RunFolder) -> nn.Module:
    """The float form of the network, with weights from `schedule.teacher`.

    The network is `schedule.teacher_model`, else that of the run folder which is the teacher, else this run's own.
    Where no teacher is named, the network of this run's own pretrain stage.

    Raises:
        ValueError: no teacher is named and this run has no float pretrain stage to take one from; a network that is
            none of ours, or named without weights; a run folder whose network was not float.
    """
    other = _other_network(config)
    if config.schedule.teacher:
        float_config = OmegaConf.merge(config, {"model": {"form": "float", "pretrained": config.schedule.teacher}})
        if other:
            float_config.model._target_, float_config.model.options = other
        elif config.model.form == "fbin":
            float_config.model.options = {}
        try:
            return build.model(float_config).eval().to(build.device(config))
        except (ValueError, OSError) as e:
            raise ValueError(str(e).replace("model.pretrained", "schedule.teacher")) from e
    boundary = folder.boundary("pretrain")
    if config.model.form != "float" or not boundary.is_file():
        raise ValueError(NO_TEACHER)
    teacher = build.model(OmegaConf.merge(config, {"model": {"pretrained": None}}))
    content = load_plain(boundary)
    cut(teacher, content.get("cut", {}), trained=False)
    state = content["model"]
    names = {k.replace("parametrizations.", "").removesuffix(".original"): v for k, v in state.items()}
    teacher.load_state_dict({k: names[k] for k in teacher.state_dict()})
    return teacher.eval().to(build.device(config))


def _other_network(config: DictConfig) -> tuple[str, dict[str, Any]] | None:
    """Builder and options of the teacher's network; None: the run's own."""
    name, teacher = config.schedule.teacher_model, config.schedule.teacher
    if name is not None and name not in (known := targets("model")):
        raise ValueError(f"schedule.teacher_model={name}: expected one of {' | '.join(known)}")
    if name is not None and not teacher:
        raise ValueError(f"schedule.teacher_model={name} needs schedule.teacher=<its weights>")
    if name is not None:
        _check_saw(config, Path(teacher).expanduser())
        return known[name], {}
    if not teacher or not (said := RunFolder(Path(teacher).expanduser()).config).is_file():
        return None
    try:
        its = OmegaConf.load(said)
        form, other = its.model.form, (its.model._target_, its.model.options)
    except (YAMLError, OmegaConfBaseException, AttributeError) as error:
        raise ValueError(f"schedule.teacher={teacher}: its config.yaml names no network") from error
    if form != "float":
        raise ValueError(f"schedule.teacher={teacher}: a run of form {form}; expected one that trained a float network")
    _check_saw(config, Path(teacher).expanduser())
    return other


def _check_saw(config: DictConfig, teacher: Path) -> None:
    """A teacher that is a run folder must have seen images as this run's are; of a file nothing is known."""
    path = RunFolder(teacher).config
    saw = (read_mapping(path) if path.is_file() else {}).get("dataset") or {}
    for key in ("mean", "std"):
        mine = list(config.dataset[key])
        if list(saw.get(key, mine)) != mine:
            raise ValueError(
                f"schedule.teacher={teacher}: it saw images of dataset.{key}={list(saw[key])}; expected {mine}, as here"
            )
