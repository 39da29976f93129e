#!/usr/bin/env bash
# A real SLURM of one node on this machine, for tests and for trying a sweep out:
#
#     scripts/slurm_local.sh start     # prints the `export SLURM_CONF=…` that sbatch, squeue and submitit need
#     scripts/slurm_local.sh stop
#
# Needs root and Debian's packages slurm-wlm and munge. State, logs and configuration are in $SLURM_LOCAL (default
# /tmp/slurm_local); controller and node listen on separate ports of the loopback address.
set -euo pipefail

HOME_FOLDER="${SLURM_LOCAL:-/tmp/slurm_local}"
CONF="$HOME_FOLDER/slurm.conf"
CONTROLLER_PORT="${SLURM_LOCAL_PORT:-26817}"
NODE_PORT=$((CONTROLLER_PORT + 1))
SECONDS_TO_WAIT=30
# A requeued job waits until its credentials have expired; if it starts earlier, it may fail as "revoked".
REST=10

fail() { echo "slurm_local.sh: $*" >&2; exit 2; }

# The pid in a file, if a process of that name has it.
alive() { # file, name
  local pid
  pid=$(cat "$1" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] && echo "$pid"
}

wait_until() { # description, command…
  local what=$1 deadline=$((SECONDS + SECONDS_TO_WAIT))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || fail "$what: still waiting after $SECONDS_TO_WAIT s; logs are in $HOME_FOLDER"
    sleep 0.2
  done
}

node_is_idle() { [ "$(SLURM_CONF=$CONF sinfo --noheader --format=%T)" = idle ]; }

configure() {
  local cpus memory
  cpus=$(env --unset=OMP_NUM_THREADS nproc)
  memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
  mkdir -p "$HOME_FOLDER"/{state,spool,munge}
  cat > "$CONF" <<END
ClusterName=local
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$CONTROLLER_PORT
SlurmdPort=$NODE_PORT
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$HOME_FOLDER/munge/socket,cred_expire=$REST
CryptoType=crypto/munge
StateSaveLocation=$HOME_FOLDER/state
SlurmdSpoolDir=$HOME_FOLDER/spool
SlurmctldPidFile=$HOME_FOLDER/slurmctld.pid
SlurmdPidFile=$HOME_FOLDER/slurmd.pid
SlurmctldLogFile=$HOME_FOLDER/slurmctld.log
SlurmdLogFile=$HOME_FOLDER/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=20
KillWait=5
MinJobAge=3600
SchedulerParameters=sched_interval=1,batch_sched_delay=0,requeue_delay=1
NodeName=localhost NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory
PartitionName=local Nodes=localhost Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
END
  cat > "$HOME_FOLDER/cgroup.conf" <<END
CgroupPlugin=cgroup/v1
CgroupAutomount=no
ConstrainCores=no
ConstrainRAMSpace=no
END
}

start() {
  local program
  [ "$(id -u)" = 0 ] || fail "needs root; run it as root"
  for program in munged slurmctld slurmd sbatch; do
    command -v $program >/dev/null || fail "$program: not installed; run apt-get install slurm-wlm munge"
  done
  ! alive "$HOME_FOLDER/slurmctld.pid" slurmctld >/dev/null || fail "is running already; scripts/slurm_local.sh stop ends it"
  configure
  if [ ! -s "$HOME_FOLDER/munge/key" ]; then head --bytes=1024 /dev/urandom > "$HOME_FOLDER/munge/key"; fi
  chmod 400 "$HOME_FOLDER/munge/key"
  chmod 755 "$HOME_FOLDER/munge"
  chown -R munge: "$HOME_FOLDER/munge"
  setpriv --reuid=munge --regid=munge --clear-groups munged --force --key-file="$HOME_FOLDER/munge/key" \
    --socket="$HOME_FOLDER/munge/socket" --pid-file="$HOME_FOLDER/munge/pid" --log-file="$HOME_FOLDER/munge/log" \
    --seed-file="$HOME_FOLDER/munge/seed"
  export SLURM_CONF=$CONF
  slurmctld
  wait_until slurmctld scontrol ping
  slurmd -N localhost
  wait_until slurmd node_is_idle
  echo "export SLURM_CONF=$CONF"
}

stop() {
  local name pid
  if alive "$HOME_FOLDER/slurmctld.pid" slurmctld >/dev/null; then
    SLURM_CONF=$CONF scancel --user=root 2>/dev/null || true
  fi
  for name in slurmd slurmctld; do
    if pid=$(alive "$HOME_FOLDER/$name.pid" $name); then
      kill "$pid"
      wait_until "the end of $name" sh -c "! kill -0 $pid"
    fi
  done
  if pid=$(alive "$HOME_FOLDER/munge/pid" munged); then kill "$pid"; fi
  rm -rf "$HOME_FOLDER"
}

case "${1:-}" in
  start) start ;;
  stop) stop ;;
  *) fail "allowed are start and stop" ;;
esac
