"""Every failure is one line that names what the user typed; only the unexpected ones speak of exceptions."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import InstantiationException

from sparsign import evaluate, train
from sparsign.pipeline import build, cli, objective
from sparsign.pipeline.cli import one_line
from sparsign.pipeline.pack import check_layer_patterns
from tests.made_report import a_report

TYPED = {
    "compressor.prf=0.2": "compressor.prf: no such option (did you mean pfr?)",
    "zzz=1": "zzz: no such option; known:",
    "zzz.bar=1": "zzz: no such option; known:",
    "modle=resnet18": "modle: no such option (did you mean model?)",
    "model=resnet81": "model=resnet81: no such member of group model (did you mean resnet18?); available: alexnet, ",
    "experiment=zzz": "experiment=zzz: no such member of group experiment; available: ",
    "model.options.x=1": "model.options.x: no such option",
    "dataset.options.x=1": "dataset.options.x: no such option; known: none",
    "compressor.pfr=abc": "compressor.pfr=abc: expected a value of type float",
    "compressor.pfr='a\nb'": "compressor.pfr=a b: expected a value of type float",
    "trainer.devices=1.5": "trainer.devices=1.5: expected a value of type integer",
    "latency.batches=[a]": "latency.batches[0]=a: expected a value of type integer",
    "compressor.float_layers=3": "compressor.float_layers=3: ",
    "schedule.pretrain=3": "schedule.pretrain=3: ",
    "seed=null": "seed=null: ",
    "~compressor.pfr": "~compressor.pfr: ",
    "compressor.pfr": "compressor.pfr",
    "compressor.pfr=[": "compressor.pfr=[: not as Hydra reads words (no viable alternative at input '[')",
    "resume=my(1).x": "resume=my(1).x: not as Hydra reads words (",
    "+model=resnet18": "model appears more than once",
    "model=resnet18,resnet20": "model=resnet18,resnet20",
    "compressor.pfr=${nothing}": "Interpolation key 'nothing' not found",
    "compressor.pfr=1.7": "compressor.pfr=1.7: expected a value in [0, 1)",
    "compressor.pfr=nan": "compressor.pfr=nan: expected a value in [0, 1)",
    "compressor.beta=inf": "compressor.beta=inf: expected a value in [0, inf)",
    "compressor.form=float": "compressor.form=float: expected a value in wbin | fbin",
    "schedule.pretrain.epochs=-1": "schedule.pretrain.epochs=-1: expected a value in [0, inf)",
    "schedule.prune.decay=step": "schedule.prune.decay=step: expected a value in constant | cosine",
    "latency.threads=[1,0]": "latency.threads=0: expected a value in [1, 1024]",
    "seed=-1": "seed=-1: expected a value in [0, 4294967296)",
    "seed=4294967296": "seed=4294967296: expected a value in [0, 4294967296)",
    "experiment=stq_a_nin_cifar10_fbi": "group experiment (did you mean stq_a_nin_cifar10_fbin?); available: ",
    "trainer.threads=100000": "trainer.threads=100000: expected a value in [1, 1024]",
    "latency.batches=[4096]": "latency.batches=4096: expected a value in [1, 1024]",
    "model.num_classes=7": "model.num_classes=7: expected 10, dataset.num_classes of dataset=digits",
    "model.image_size=64": "model.image_size=64: expected 32, dataset.image_size of dataset=digits",
    "image_size=64": "image_size: no such option (did you mean model.image_size or dataset.image_size?)",
    "model.form=float": "model.form=float: expected fbin, compressor.form of compressor=stq_a",
    "dataset.name=mnist": "dataset.name=mnist: expected digits; to change the dataset, say dataset=mnist",
    "model.name=vgg11": "model.name=vgg11: expected resnet18; to change the model, say model=vgg11",
    "schedule.prune.gamma=x": "schedule.prune.gamma=x: expected a value in (0, 1]",
    "schedule.prune.milestones=[2]": "schedule.prune.milestones=2.0: expected a value in (0, 1)",
    "schedule.prune.warmup=-1": "schedule.prune.warmup=-1.0: expected a value in [0, inf)",
    "schedule.prune.clip=0": "schedule.prune.clip=0.0: expected a value in (0, inf)",
    "objective=[top1]": "objective=top1: expected a value in val_top1 | bytes | milliseconds",
    "objective=[]": "objective=[]: expected at least one of val_top1 | bytes | milliseconds",
    "++compressor.foo=1": "compressor.foo: no such option",
    "++compressor.pfx=1": "compressor.pfx: no such option (did you mean pfr?)",
    "+foo=1": "foo: no such option",
    "pfr=0.2": "pfr: no such option (did you mean compressor.pfr?)",
    "++trainer.foo=1": "trainer.foo: no such option",
    "compressor.pfr.x=1": "compressor.pfr",
    "hydra/launcher=joblib_": 'hydra/launcher=joblib_ needs a package: pip install "sparsign[joblib]"',
    "trainer.accelerator=tpu": "trainer.accelerator=tpu: expected a value in auto | cpu | gpu",
}


@pytest.mark.parametrize("override", TYPED)
def test_what_was_typed_wrong_is_named_in_one_line(override, configuration):
    with pytest.raises(Exception) as caught:
        build.validate(configuration(override))
    line = one_line(caught.value)
    assert TYPED[override] in line
    assert "\n" not in line and not line.startswith((":", " ")) and "Traceback" not in line
    assert "HYDRA_FULL_ERROR" not in line and "Exception" not in line


def test_a_sweeper_is_told_what_objective_names_in_its_order(configuration):
    report = a_report(0.9, 1234, val_top1=0.8)
    for asked, told in {"[val_top1]": 0.8, "[bytes]": 1234, "[bytes,val_top1]": (1234, 0.8)}.items():
        assert objective.told(configuration(f"objective={asked}"), report) == told
    report |= {"speed": [], "accuracy": report["accuracy"] | {"val_top1": None}}
    assert objective.told(configuration(), report) is None  # a run alone needs none
    for asked in ("milliseconds", "bytes,val_top1"):
        with pytest.raises(ValueError, match=rf"^objective={asked.split(',')[-1]}: this run has none; expected "):
            objective.told(configuration(f"objective=[{asked}]"), report)


def test_what_a_sweeper_would_miss_is_named_before_training(configuration, tmp_path):
    with pytest.raises(
        ValueError, match=r"^objective=milliseconds: nothing is timed; expected latency\.seconds above 0"
    ):
        build.validate(configuration("objective=[bytes,milliseconds]", "latency.seconds=0"))
    none_held_out = configuration("objective=[val_top1,bytes]", "dataset.val_fraction=0", "model=resnet20")
    with pytest.raises(ValueError, match=r"^objective=val_top1: no images are held out"):
        train.run(none_held_out, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_reader_that_closed_the_pipe_is_no_failure():
    reader, writer = os.pipe()
    os.close(reader)
    code = "from sparsign.pipeline.cli import to_a_reader; to_a_reader(lambda: print('help'))"
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("word", ["~model", "+model=a", "model", "model=", "model=null", "model=[a,b]", "model=a,b"])
def test_a_group_has_one_member(word):
    with pytest.raises(ValueError, match=rf"^{re.escape(word)}: expected one member, model=NAME; to sweep"):
        cli.one_member(word, sweeps=False)


def test_words_that_are_no_choice_of_one_member_pass():
    for word in ("model=resnet18", "model.options={a: 1}", "model=choice(a,b)", "seed=1,2", "experiment=null"):
        cli.one_member(word, sweeps=False)
    cli.one_member("model=a,b", sweeps=True)


def test_mappings_of_a_method_need_no_plus():
    assert cli.spelled("compressor.ratios={conv1: 0.5}") == "++compressor.ratios={conv1: 0.5}"
    assert cli.spelled("compressor.ratios.conv1=0.5") == "++compressor.ratios.conv1=0.5"
    for other in ("compressor.pfr=0.5", "+compressor.ratios={a: 1}", "model.options={a: 1}", "--help"):
        assert cli.spelled(other) == other


def test_a_layer_pattern_without_layers_is_named_before_training(configuration):
    config = configuration("model=resnet20", "compressor.float_layers=[first,layer9]")
    with pytest.raises(ValueError, match=r"^compressor\.float_layers=layer9: no layer's name has it"):
        check_layer_patterns(build.compressor(config), build.model(config))
    for method in ("stq_a", "xnor"):  # their own `downsample` is found in ResNets only
        own = configuration(f"compressor={method}", "model=nin")
        check_layer_patterns(build.compressor(own), build.model(own))


def test_a_report_that_could_not_be_written_is_refused_before_the_work(tmp_path):
    evaluate.check_output(tmp_path)
    assert not list(tmp_path.iterdir())
    for where in ("/proc", str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match=f"^output={where}: "):
            evaluate.check_output(Path(where))


def test_only_a_run_can_be_packed_again(tmp_path):
    evaluate.check_repack(True, str(tmp_path), None, "bf16")
    evaluate.check_repack(False, None, "x.sparsign", None)
    for options, said in {
        (False, "run", None, "bf16"): "leftovers=bf16: expected repack=true with it",
        (True, None, "x.sparsign", None): "repack=true with run=None, packed=x.sparsign: expected run=<folder> alone",
        (True, str(tmp_path / "nowhere"), None, None): "nowhere: there is no such folder",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            evaluate.check_repack(*options)


def test_input_errors_speak_for_themselves():
    assert one_line(ValueError("a=1: expected\n  2\n")) == "a=1: expected 2"
    assert one_line(FileNotFoundError("data/x is missing")) == "data/x is missing"
    assert (
        one_line(OSError(28, "No space left on device", "model.sparsign")) == "model.sparsign: No space left on device"
    )
    assert one_line(FileExistsError(17, "File exists", "runs")) == "runs: File exists; expected a folder"


def test_the_cause_inside_of_hydras_wrapping_is_told():
    wrapped = InstantiationException("Error in call to target 'sparsign.compressors.ptq.PTQ':\nfull_key: compressor")
    wrapped.__cause__ = ValueError("compressor.pfr=2: expected a value in [0, 1)")
    assert one_line(wrapped) == "compressor.pfr=2: expected a value in [0, 1)"


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes\ndiffer"), KeyError("weight"), AssertionError(), ZeroDivisionError("a\r\nb\n\nc")]
)
def test_unexpected_errors_name_their_type_and_the_way_to_the_traceback(error):
    line = one_line(error)
    assert line.startswith(f"{type(error).__name__}: ") and "HYDRA_FULL_ERROR=1" in line
    assert len(line.splitlines()) == 1


def test_failing_command_prints_one_line_and_exits_with_one(capsys):
    @cli.fails_in_one_line
    def command():
        raise ValueError("dataset.root=nowhere: holds\nno files")

    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: dataset.root=nowhere: holds no files\n"


def test_asked_for_tracebacks_are_given(monkeypatch):
    def command():
        raise ValueError("no")

    monkeypatch.setattr(cli, "WANTS_TRACEBACK", True)
    for run in (cli.fails_in_one_line(command), lambda: cli.run_cli(command, "train")):
        with pytest.raises(ValueError, match="no"):
            run()


def test_interrupt_and_results_pass_through(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        cli.fails_in_one_line(interrupted)()
    assert caught.value.code == 130 and capsys.readouterr().err == ""
    assert cli.fails_in_one_line(lambda a, b=2: a + b)(1, b=4) == 5
