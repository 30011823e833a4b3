#!/bin/bash
# sbatch docs/slurm.sh train diffit-xl-2 --data latents --run runs/xl
# Without --run, a requeued job would start a new run instead of continuing.
#
# One process for each GPU. Some minutes before its time is over, or when another job takes its place, SLURM sends
# SIGTERM: the run finishes its step, saves, and ends with status 143; then the job is requeued and continues.
#SBATCH --job-name=diffit
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --output=diffit-%j.log
#SBATCH --open-mode=append

trap : TERM # the processes obey it; this script waits for them
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
srun --kill-on-bad-exit=1 diffit "$@"
status=$?
if [ "$status" = 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
