"""The SLURM scripts against stand-ins for SLURM and Ray, and Hydra's SLURM launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from voxelry.engine.launch import launch
from voxelry.phantoms import write_phantoms

FOLDER = Path(__file__).parents[3] / "scripts" / "slurm"
SCRIPT, PREDICTION, EVALUATION, EVALUATIONS = (
    FOLDER / f"{name}.sbatch" for name in ("train_ray", "predict_ray", "evaluate", "evaluate_ray")
)
STANDINS = {
    "scontrol": 'printf "node1\\nnode2\\nnode3\\n"',
    "hostname": 'echo "10.0.0.7 192.168.0.7"',
    "srun": 'echo "srun $*" >> "$RECORD"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": 'echo "ray $*" >> "$RECORD"; if [[ -n ${RAY_FAILS:-} ]]; then exit 1; fi; exec tail -f /dev/null',
    "sleep": "true",
    # a token, or as many nodes as have joined
    "python": """
        if [[ $1 == -c ]]; then echo secret
        elif grep -q "^ray start --address" "$RECORD"; then echo "$SLURM_JOB_NUM_NODES"
        elif grep -q "^ray start --head" "$RECORD" && [[ -z ${RAY_FAILS:-} ]]; then echo 1
        else exit 1; fi
    """,
    "voxelry": """
        echo "voxelry $*" >> "$RECORD"
        echo "at ${RAY_ADDRESS:-no Ray}, ${RAY_AUTH_MODE:-} ${RAY_AUTH_TOKEN:-}, $OMP_NUM_THREADS threads" >> "$RECORD"
        exit ${VOXELRY_FAILS:-0}
    """,
}


@pytest.fixture
def submit(tmp_path):
    """Run the script as SLURM would on three nodes; answers the finished process and what was started."""
    for name, body in STANDINS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/usr/bin/env bash\n{body}\n")
        program.chmod(0o755)
    record = tmp_path / "record"
    record.touch()

    def run(*arguments: str, script: Path = SCRIPT, **variables: str):
        environment = {
            "OMP_NUM_THREADS": "1",
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "RECORD": str(record),
            "SLURM_JOB_ID": "4711",
            "SLURM_SUBMIT_DIR": str(FOLDER.parents[1]),
            "SLURM_JOB_NODELIST": "node[1-3]",
            "SLURM_JOB_NUM_NODES": "3",
            "SLURM_CPUS_PER_TASK": "16",
            "SLURM_GPUS_ON_NODE": "4",
            **variables,
        }
        done = subprocess.run(
            ["bash", str(script), *arguments], env=environment, capture_output=True, text=True, timeout=60
        )
        return done, record.read_text().splitlines()

    return run


@pytest.mark.parametrize("script", [SCRIPT, PREDICTION, EVALUATION, EVALUATIONS], ids=lambda path: path.stem)
def test_a_script_is_valid_shell(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    assert os.access(script, os.X_OK)


def test_an_evaluation_is_one_process_with_the_processors_of_the_job(submit):
    done, started = submit("--model", "/runs/my run", "/data", "--out", "/scores", script=EVALUATION)
    assert done.returncode == 0, done.stderr
    assert started == [
        "srun --ntasks=1 voxelry evaluate --model /runs/my run /data --out /scores",
        "voxelry evaluate --model /runs/my run /data --out /scores",
        "at no Ray,  , 16 threads",
    ]
    assert submit("--model", "x", script=EVALUATION, VOXELRY_FAILS="3")[0].returncode == 3
    outside, _ = submit(script=EVALUATION, SLURM_JOB_ID="")
    assert outside.returncode != 0
    assert "run this with sbatch" in outside.stderr


def test_ray_starts_on_every_node_and_the_training_on_one(submit):
    done, started = submit("experiment=segment_3d", "data.root=/data/with space")
    assert done.returncode == 0, done.stderr
    head, workers = (line for line in started if line.startswith("ray start"))
    assert "--head --node-ip-address=10.0.0.7 --port=24711" in head
    assert "--address=10.0.0.7:24711" in workers
    assert all("--num-cpus=16 --num-gpus=4" in line and "--block" in line for line in (head, workers))
    places = [line.split(" ray start")[0] for line in started if line.startswith("srun") and " ray start" in line]
    assert "--nodes=1 " in places[0]
    assert places[0].endswith("--nodelist=node1")
    assert "--nodes=2 " in places[1]
    assert places[1].endswith("--exclude=node1")
    assert started[-2] == (
        "voxelry train experiment=segment_3d data.root=/data/with space resume=true launcher=ray "
        "launcher.num_workers=12 launcher.cpus_per_worker=4 launcher.gpus_per_worker=1"
    )
    assert started[-1].startswith("at 10.0.0.7:24711, token secret,")


@pytest.mark.parametrize(("script", "command"), [(PREDICTION, "predict"), (EVALUATIONS, "evaluate")])
def test_the_model_is_on_every_gpu_of_the_job(submit, script, command):
    done, started = submit("--model", "/runs/nuclei", "/my scans", "--out", "/out", script=script)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("ray start") for line in started) == 2
    assert started[-2] == (
        f"voxelry {command} --model /runs/nuclei /my scans --out /out --launcher ray --workers 12 "
        "--launcher-option cpus_per_worker=4 --launcher-option gpus_per_worker=1"
    )
    assert submit(script=script, VOXELRY_FAILS="1")[0].returncode == 1


def test_a_job_submitted_elsewhere_is_told_where_the_scripts_lie(submit, tmp_path):
    done, started = submit(SLURM_SUBMIT_DIR=str(tmp_path))
    assert (done.returncode, started) == (1, [])
    assert "VOXELRY_SCRIPTS" in done.stderr
    assert submit(SLURM_SUBMIT_DIR=str(tmp_path), VOXELRY_SCRIPTS=str(FOLDER))[0].returncode == 0


def test_nodes_without_gpus_run_as_many_workers_as_asked_for(submit):
    _, started = submit("experiment=landmarks_3d", SLURM_GPUS_ON_NODE="0", VOXELRY_WORKERS_PER_NODE="2")
    assert started[-2].endswith("launcher.num_workers=6 launcher.cpus_per_worker=8 launcher.gpus_per_worker=0")


def test_one_node_has_no_others(submit):
    done, started = submit(SLURM_JOB_NUM_NODES="1")
    assert done.returncode == 0
    assert sum(line.startswith("ray start") for line in started) == 1


def test_the_job_ends_as_the_training_does(submit):
    assert submit(VOXELRY_FAILS="3")[0].returncode == 3


def test_a_ray_that_does_not_start_ends_the_job(submit):
    done, started = submit(RAY_FAILS="1")
    assert done.returncode == 1
    assert "Ray could not be started on all nodes" in done.stderr
    assert not [line for line in started if line.startswith("voxelry")]


def test_outside_a_job_the_script_says_so(submit):
    done, _ = submit(SLURM_JOB_ID="")
    assert done.returncode != 0
    assert "run this with sbatch" in done.stderr


def test_sweeps_can_be_sent_to_slurm():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'voxelry[slurm]'")
    overrides = ["hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=1", "data.root=nowhere", "output_dir=o"]
    with initialize_config_module("voxelry.configs", version_base="1.3"):
        config = compose("train", overrides=overrides, return_hydra_config=True)
    assert config.hydra.launcher._target_.endswith("SlurmLauncher")
    assert config.hydra.launcher.gpus_per_node == 1
    assert config.hydra.sweep.dir == "o"
    assert config.launcher._target_ == "voxelry.engine.train.train_process"


@pytest.mark.slow
def test_a_sweep_runs_as_jobs_and_ends_with_one_table(tmp_path, quick_training, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install 'voxelry[slurm]'")
    data = write_phantoms(tmp_path / "data", 4, seed=5, shape=(20, 24, 28))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["voxelry"])
    command = ["--multirun", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=2", "plan=null"]
    settings = ["data.preprocess.image_size=16", "trainer.max_steps=1", "trainer.limit_val_batches=1", "seed=1"]
    launch([*command, "experiment=landmarks_3d", *quick_training, *settings, f"data.root={data}", "output_dir=sweep"])
    assert len((tmp_path / "sweep" / "sweep.csv").read_text().splitlines()) == 2
    assert (tmp_path / "sweep" / "0" / "bundle" / "weights.safetensors").exists()
