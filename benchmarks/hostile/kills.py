"""SIGKILL at random instants, then resume."""

from __future__ import annotations

RUNS = {
    "ptq lenet5": ["compressor=ptq", "model=lenet5"],
    "admm lenet5": ["compressor=admm", "model=lenet5"],
    "stq_a resnet20": ["compressor=stq_a", "model=resnet20"],
    "wpc resnet20": ["compressor=wpc", "model=resnet20"],
}


def results(folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """What has to be equal: the packed file and all rows of metrics but times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "model.sparsign").read_bytes(), [
        {k: v for k, v in row.items() if "images_per_s" not in k and "seconds" not in k} for row in rows
    ]


def run_kills(options: argparse.Namespace) -> bool:
    """SIGKILL at random instants, then resume."""
    rng, good = random.Random(options.seed), True
    with tempfile.TemporaryDirectory() as base:
        for name, overrides in RUNS.items():
            command = [sys.executable, str(ROOT / "train.py"), *overrides, "schedule=smoke", "latency.seconds=0"]
            command += ["trainer.threads=1", "trainer.progress=false"]
            whole = Path(base) / name.replace(" ", "_")
            started = time.monotonic()
            _trained([*command, f"hydra.run.dir={whole}"])
            length, expected = time.monotonic() - started, results(whole)
            equal = 0
            for k in range(options.kills):
                folder, after = Path(f"{whole}_{k}"), rng.uniform(0.3, 1.0) * length
                process = subprocess.Popen([*command, f"hydra.run.dir={folder}"], stdout=-3, stderr=-3)
                try:
                    process.wait(after)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                known = (folder / "config.yaml").is_file()
                _trained([*command, f"resume={folder}" if known else f"hydra.run.dir={folder}"])
                equal += results(folder) == expected
            print(f"{name}: {equal} of {options.kills} runs, killed within {length:.0f} s, ended bit-equal", flush=True)
            good &= equal == options.kills
    return good


def _trained(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr[-500:]}")
