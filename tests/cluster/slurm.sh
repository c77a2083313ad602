#!/usr/bin/env bash
# A Slurm cluster on this one machine: a controller and two nodes, one and two, with one core each, as Debian's slurm-wlm
# and munge have them. All of it lies in FOLDER, beside any cluster that the machine may have. Needs root.
#
#   slurm.sh start FOLDER        start it; commands find it by `export SLURM_CONF=FOLDER/slurm.conf`
#   slurm.sh kill FOLDER NODE    kill a node with all that runs on it, as a power cut does
#   slurm.sh node FOLDER NODE    start a node, as again after that
#   slurm.sh stop FOLDER         end it
set -euo pipefail
folder=$(mkdir -p "$2" && cd "$2" && pwd)
export SLURM_CONF="$folder/slurm.conf"

port() { # one that nobody uses
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

configure() {
    cat >"$SLURM_CONF" <<CONF
ClusterName=small
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$(port)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=2
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=300
SlurmdParameters=config_overrides
NodeName=one NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$(port) CPUs=1 RealMemory=8000 State=UNKNOWN
NodeName=two NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$(port) CPUs=1 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=one,two Default=YES MaxTime=INFINITE State=UP
CONF
}

node() {
    mkdir -p "$folder/$1"
    slurmd -N "$1"
}

start() {
    rm -rf "$folder/state"
    mkdir "$folder/state"
    head -c 1024 /dev/urandom >"$folder/munge.key"
    chmod 600 "$folder/munge.key"
    munged --force --num-threads=2 --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
        --pid-file="$folder/munge.pid" --log-file="$folder/munge.log" --seed-file="$folder/munge.seed"
    configure
    slurmctld
    node one
    node two
    for _ in $(seq 30); do
        [ "$(sinfo --noheader --format=%T --Node | grep --count --word-regexp idle)" = 2 ] && return
        sleep 1
    done
    sinfo >&2
    tail "$folder"/*.log >&2
    return 1
}

kill_node() {
    # The node's own process; those of its jobs, which know where they are; and the daemons of Slurm above these.
    local process above victims
    victims=$(cat "$folder/$1.pid")
    for process in $(cd /proc && ls -d [0-9]*); do
        { tr '\0' '\n' <"/proc/$process/environ"; } 2>/dev/null >"$folder/environ" || continue
        grep --quiet --line-regexp "SLURM_CONF=$SLURM_CONF" "$folder/environ" || continue
        grep --quiet --line-regexp "SLURMD_NODENAME=$1" "$folder/environ" || continue
        above=$(sed 's/.*) . //' "/proc/$process/stat" 2>/dev/null | cut -d' ' -f1)
        victims+=" $process"
        [ "$(cat "/proc/$above/comm" 2>/dev/null)" = slurmstepd ] && victims+=" $above"
    done
    # At once: one that outlives another could still tell the controller how that one ended.
    kill -STOP $victims 2>/dev/null || true
    kill -KILL $victims 2>/dev/null || true
}

stop() {
    local name
    for name in one two; do
        kill_node "$name"
    done
    for name in slurmctld munge; do
        kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
    done
}

case "$1" in
start) start ;;
kill) kill_node "$3" ;;
node) node "$3" ;;
stop) stop ;;
*) exit 2 ;;
esac
