#!/usr/bin/env bash
# Start SLURM on this one machine for one command, and stop it again; its exit status is the command's, 69 if there is
# no SLURM to start. Debian's slurm-wlm and munge are needed, and root; --install installs them. Nothing outside of a
# temporary folder is written, and a SLURM that is there already is left alone.
#
#   bash scripts/slurm_once.sh [--install] -- python -m pytest -n 0 tests/test_slurm.py
set -euo pipefail

install=
if [ "${1:-}" = --install ]; then
    install=yes
    shift
fi
if [ "${1:-}" != -- ] || [ $# -lt 2 ]; then
    echo "usage: slurm_once.sh [--install] -- COMMAND" >&2
    exit 2
fi
shift

unavailable() {
    echo "slurm_once: no SLURM: $1" >&2
    exit 69
}

PATH=$PATH:/usr/sbin:/sbin
[ "$(id -u)" = 0 ] || unavailable "only root can start one"
there() { command -v slurmctld slurmd munged sbatch scontrol >/dev/null; }
if ! there && [ -n "$install" ]; then
    command -v apt-get >/dev/null || unavailable "its packages are installed by apt-get, which is not here"
    export DEBIAN_FRONTEND=noninteractive
    get="apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge"
    timeout --kill-after=10 180 bash -c "$get" >/dev/null 2>&1 ||
        unavailable "apt-get could not install slurm-wlm and munge within three minutes"
fi
there || unavailable "the packages slurm-wlm and munge are not installed; --install installs them"

folder=$(mktemp -d)
chmod 755 "$folder"
daemons=()
stop() {
    trap - EXIT INT TERM HUP
    for _ in $(seq 20); do # jobs would outlive slurmd
        scancel --quiet --user="$(id -un)" 2>/dev/null || true
        [ -n "$(squeue -h 2>/dev/null || true)" ] || break
        sleep 0.5
    done
    for daemon in "${daemons[@]}"; do # slurmd first: what it started ends with it
        kill "$daemon" 2>/dev/null || true
    done
    wait 2>/dev/null || true
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 143' INT TERM HUP

# Ports of its own, so that another SLURM of this machine is not met.
free=$((20000 + RANDOM % 20000))
host=$(hostname -s)
# nproc says what OMP_NUM_THREADS does. Two at least, so that two jobs run at once.
cpus=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)
[ "$cpus" -gt 1 ] || cpus=2
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.8)}' /proc/meminfo)
export SLURM_CONF=$folder/slurm.conf
cat >"$SLURM_CONF" <<EOF
ClusterName=once
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$free
SlurmdPort=$((free + 1))
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
JobRequeue=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOF
mkdir "$folder/state" "$folder/spool"
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")

start() {
    "$@" >>"$folder/said.log" 2>&1 &
    daemons=($! "${daemons[@]}")
}
start munged --foreground --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
for _ in $(seq 50); do
    [ -S "$folder/munge.socket" ] && break
    sleep 0.1
done
start slurmctld -D
start slurmd -D
for _ in $(seq 100); do
    if sinfo -h -o %t 2>/dev/null | grep -q idle; then
        status=0
        "$@" || status=$?
        exit $status
    fi
    sleep 0.2
done
tail -n 20 "$folder/said.log" >&2
unavailable "slurmctld and slurmd did not start"
