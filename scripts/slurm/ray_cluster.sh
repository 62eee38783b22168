# shellcheck shell=bash
# Starts Ray on the nodes of a SLURM job and waits until all have joined; read by the *_ray.sbatch beside it.
# Gives them $nodes, $cpus and $gpus of each, $per_node (processes on a node), `finish COMMAND...`, and
# `finish_many COMMAND...` for `voxelry predict` and `evaluate`, which get the settings of their workers.

set -euo pipefail

if [[ -n ${VOXELRY_ENV:-} ]]; then
    # shellcheck source=/dev/null
    source "$VOXELRY_ENV/bin/activate"
fi
: "${SLURM_JOB_ID:?run this with sbatch}" "${SLURM_JOB_NODELIST:?run this with sbatch}"

nodes=${SLURM_JOB_NUM_NODES:-1}
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
gpus=${SLURM_GPUS_ON_NODE:-0}
per_node=${VOXELRY_WORKERS_PER_NODE:-$((gpus > 0 ? gpus : 1))}
port=${VOXELRY_RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
wait_for=${VOXELRY_RAY_WAIT:-300}
temporary=${VOXELRY_RAY_TMP:-/tmp/ray-$SLURM_JOB_ID}

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
# the first of its addresses: a host with several networks prints them all
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{ print $1; exit }')
export RAY_ADDRESS=$address:$port RAY_USAGE_STATS_ENABLED=0
# who can reach the port could run programs as this user: let in those who know what this job alone knows
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token

started=()
stop() {
    local status=$?
    trap - EXIT
    for process in ${started[@]+"${started[@]}"}; do
        kill "$process" 2>/dev/null || true
    done
    wait
    exit "$status"
}
trap stop EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

ray_on() { # nodes, further srun option, arguments of `ray start`
    srun --nodes="$1" --ntasks="$1" --ntasks-per-node=1 --cpus-per-task="$cpus" "$2" \
        ray start "${@:3}" --num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats --block &
    started+=("$!")
}

echo "Ray: $nodes nodes with $cpus CPUs and $gpus GPUs each, head $head at $RAY_ADDRESS"
ray_on 1 "--nodelist=$head" --head --node-ip-address="$address" --port="$port" \
    --include-dashboard=false --temp-dir="$temporary"

alive() { # nodes that have joined; 0 while the head is not up
    timeout 60 python - 2>/dev/null <<'PYTHON' || echo 0
import logging
import ray

ray.init(address="auto", logging_level=logging.CRITICAL, log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()))
PYTHON
}

join() { # wait until so many nodes are there
    until (($(alive) >= $1)); do
        for process in "${started[@]}"; do
            if ! kill -0 "$process" 2>/dev/null; then
                echo "Ray could not be started on all nodes; its logs are in $temporary" >&2
                exit 1
            fi
        done
        if ((SECONDS > wait_for)); then
            echo "fewer than $1 nodes joined within $wait_for s (VOXELRY_RAY_WAIT)" >&2
            exit 1
        fi
        sleep 2
    done
}

join 1
if ((nodes > 1)); then
    ray_on "$((nodes - 1))" "--exclude=$head" --address="$RAY_ADDRESS"
    join "$nodes"
fi

finish() { # run a command on the first node, and end the job as it does
    "$@" &
    local work=$!
    started+=("$work")
    wait "$work"
}

finish_many() {
    finish "$@" --launcher ray --workers "$((nodes * per_node))" \
        --launcher-option cpus_per_worker="$((cpus / per_node > 0 ? cpus / per_node : 1))" \
        --launcher-option gpus_per_worker="$((gpus / per_node))"
}
