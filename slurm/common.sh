# shellcheck shell=bash
# Sourced inside a job by every script of this folder: the site's environment, one rank per GPU, and what is done when
# nodes, the time limit or ranks end a step. slurm/README.md tells the whole story; site.env.example lists the settings.
set -euo pipefail
# The time limit's USR1 may come in this script's first seconds, before `launch` listens; it would end the job.
stop_asked=0
trap 'stop_asked=1' USR1
cd "$UPSCALE_CLONE" # set by the script that sources this: the root of the clone

SRUN_OPTIONS=() CONTAINER=()
if [ -f slurm/site.env ]; then
    # shellcheck source=site.env.example
    source slurm/site.env
fi
if ! command -v upscale >/dev/null && [ -x .venv/bin/upscale ]; then
    PATH="$PWD/.venv/bin:$PATH"
fi

say() { printf '%(%F %T)T slurm: %s\n' -1 "$*"; }

fail() { # CODE MESSAGE
    say "FAILED: $2"
    event failed "\"reason\": \"${2//[\"\\]/}\", \"exit_code\": $1"
    exit "$1"
}

event() { # NAME [JSON members]: one line of events.jsonl in the run directory, which `upscale status` reads
    [ -z "${records:-}" ] || printf '{"time": "%(%FT%T%z)T", "job": "%s", "verb": "%s", "restart": %d, "event": "%s"%s}\n' \
        -1 "$SLURM_JOB_ID" "$verb" "$restart" "$1" "${2:+, $2}" >>"$records/events.jsonl"
}

allocation() { # Read what Slurm gave, print it, and refuse what cannot be used
    mapfile -t all_nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    restart=${SLURM_RESTART_COUNT:-0} max_restarts=${LAUNCH_MAX_RESTARTS:-50}
    ranks_per_node=${LAUNCH_RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-0}}
    [ -z "${LAUNCH_RANKS_PER_NODE:-}" ] || export LAUNCH_RANKS_PER_NODE # every rank compares it with its world
    say "job $SLURM_JOB_ID ($SLURM_JOB_NAME), restart $restart, on ${#all_nodes[@]} nodes ($SLURM_JOB_NODELIST)," \
        "${SLURM_GPUS_ON_NODE:-no} GPUs and $SLURM_CPUS_ON_NODE CPUs on each; $(git describe --always --dirty 2>/dev/null || echo 'no commit known')"
    [ "$ranks_per_node" -gt 0 ] || fail 2 "no GPUs in this allocation, so it is unknown how many ranks a node should \
run. Ask for GPUs (sbatch --gres=gpu:N) or say it: LAUNCH_RANKS_PER_NODE=2 sbatch --gres=none ..."
    [ "$restart" -le "$max_restarts" ] || fail 1 "restarted $restart times, more than LAUNCH_MAX_RESTARTS=$max_restarts"
}

claim() { # DIRECTORY: two jobs that write to one run directory would destroy it
    local code=0 said
    said=$(python -m upscale.launch.slurm.questions claim "$1" 2>&1) || code=$?
    [ "$code" = 0 ] || fail "$code" "${said#error: }"
}

answering() { # The nodes that start a process and pass NODE_CHECK, one a line, in Slurm's order
    local node answers
    answers=$(
        for node in "${all_nodes[@]}"; do
            # --overlap --mem=0: a dead node's step keeps its resources until Slurm has noticed.
            timeout --kill-after=5 "${LAUNCH_PROBE_SECONDS:-30}" srun --overlap --mem=0 --nodes=1 --ntasks=1 \
                --nodelist="$node" bash -c "${NODE_CHECK:-true}" >/dev/null 2>&1 </dev/null && echo "$node" &
        done
        wait
    )
    for node in "${all_nodes[@]}"; do
        ! grep -qxF "$node" <<<"$answers" || echo "$node"
    done
}

free_port() { # Depends on job and attempt, and skips what is in use on this node, where rank 0 will listen
    local port=$((20000 + (SLURM_JOB_ID * 16 + restart + attempt) % 10000))
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
    echo "$port"
}

# With --no-kill Slurm lets a job run on for ever whose first node has died, and this script with it (measured, 22.05).
# So another node watches, and requeues the job when Slurm has taken the first node away from it.
watch_first_node() {
    # shellcheck disable=SC2016 # expanded on that node
    local script='while sleep "$2"; do
        nodes=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %N) && [ -n "$nodes" ] || continue
        scontrol show hostnames "$nodes" | grep -qxF "$1" || scontrol requeue "$SLURM_JOB_ID"
    done'
    exec srun --overlap --mem=0 --nodes=1 --ntasks=1 --nodelist="${nodes[-1]}" --input=none --output="$logs/watch.log" \
        bash -c "$script" watch "${all_nodes[0]}" "${LAUNCH_WATCH_SECONDS:-30}" 2>"$logs/watch.err"
}

# A rank that is stopped, or held by its GPU, tells nobody when it is alone, and of several that all are nobody is left
# to tell. So this kills step $1 when its ranks have begun to touch $logs/heartbeat and then have not for too long.
watch_heartbeat() {
    local seen='' now quiet=0 pause=${LAUNCH_HEARTBEAT_SECONDS:-5} allowed step
    until [ "$quiet" -gt "${allowed:-$quiet}" ]; do
        sleep "$pause"
        # Opened, because NFS may answer a mere look from memory.
        allowed=$(cat "$logs/heartbeat" 2>/dev/null || true)
        [ -n "$allowed" ] || continue
        now=$(stat --format=%.Y "$logs/heartbeat" 2>/dev/null) || continue
        allowed=$((allowed + 20)) # of several ranks the others say first which one it is
        if [ "$now" = "$seen" ]; then quiet=$((quiet + pause)); else quiet=0; fi
        seen=$now
    done
    touch "$logs/silent"
    say "no rank has shown life for $allowed s (engine.timeout_seconds and 20 s): killing the step"
    for step in $(squeue --noheader --steps --jobs "$SLURM_JOB_ID" --format '%i %j' | sed -n "s/ $1\$//p"); do
        scancel --signal=KILL "$step"
    done
}

step() { # COMMAND...: run it as one rank per GPU on ${nodes[@]}; the step's exit code
    local ranks=$((${#nodes[@]} * ranks_per_node)) list code watch='' heartbeat name=ranks-$restart-$attempt
    list=$(IFS=,; echo "${nodes[*]}")
    logs=$records/$SLURM_JOB_ID.$restart.$attempt
    mkdir -p "$logs"
    say "starting $ranks ranks, $ranks_per_node on each of $list; training's own lines: ${records%/slurm}/log.txt; ranks and srun: $logs/"
    event start "\"attempt\": $attempt, \"nodes\": \"$list\", \"ranks\": $ranks"
    # WORLD_SIZE is a promise that every rank compares with what srun really started. --wait: when a first rank has
    # left, the others may take ten seconds; without it the step would wait for a dead node.
    WORLD_SIZE=$ranks MASTER_ADDR=${all_nodes[0]} MASTER_PORT=$(free_port) UPSCALE_HEARTBEAT=$logs/heartbeat \
        srun --job-name="$name" --overlap --mem=0 --no-kill=off --kill-on-bad-exit=0 --wait=10 --input=none --output="$logs/rank-%t.log" \
        --nodes=${#nodes[@]} --nodelist="$list" --ntasks=$ranks --ntasks-per-node="$ranks_per_node" \
        --cpus-per-task=$((SLURM_CPUS_ON_NODE > ranks_per_node ? SLURM_CPUS_ON_NODE / ranks_per_node : 1)) \
        "${SRUN_OPTIONS[@]}" "${CONTAINER[@]}" "$@" 2>"$logs/srun.log" &
    pid=$! begun=$SECONDS
    watch_heartbeat "$name" &
    heartbeat=$!
    if [ ${#nodes[@]} -gt 1 ]; then
        watch_first_node &
        watch=$!
    fi
    trap 'signalled=1; say "Slurm is ending this job (TERM); the ranks were told by Slurm itself"' TERM
    while :; do # a trap interrupts `wait`
        signalled=0 code=0
        wait "$pid" || code=$?
        [ "$signalled" = 1 ] || break
    done
    trap - TERM
    pid=
    kill "$heartbeat" 2>/dev/null || true
    [ -z "$watch" ] || kill "$watch" 2>/dev/null || true
    cat "$logs/srun.log"
    return $code
}

failing_rank() { # Print the last lines of the rank that failed, which is not always the first to leave: others lost it
    local part rank first='' culprit=''
    for part in $(sed -nE 's/.*: tasks? ([0-9,-]+): .*/\1/p' "$logs/srun.log" | tr , ' '); do
        for rank in $(seq "${part%-*}" "${part#*-}"); do
            first=${first:-$rank}
            grep -q 'died or hangs' "$logs/rank-$rank.log" || culprit=${culprit:-$rank}
        done
    done
    rank=${culprit:-$first}
    [ -f "$logs/rank-$rank.log" ] || return 0
    say "rank $rank failed; the last lines of $logs/rank-$rank.log:"
    tail -n 25 "$logs/rank-$rank.log" | sed 's/^/    /'
}

patiently() { # COMMAND...: a Slurm command, repeated for a few minutes: the controller may be away
    local try
    for try in {1..20}; do
        "$@" && return 0
        say "'$*' failed (try $try of 20)" >&2
        sleep 15
    done
    return 1
}

job_state() { patiently squeue --noheader --jobs "$SLURM_JOB_ID" --format %T || echo UNKNOWN; }

requeue() { # WHY: continue in a new allocation, unless Slurm is ending the job anyway
    local state
    state=$(job_state)
    if [ "$state" != RUNNING ] && [ "$state" != UNKNOWN ]; then
        say "$1; the job is $state by Slurm's own decision"
        event stopped "\"state\": \"$state\""
        exit 75
    fi
    [ "$restart" -lt "$max_restarts" ] || fail 1 "$1, but restarted $restart times already \
(LAUNCH_MAX_RESTARTS=$max_restarts). Submit the same command again to continue."
    event requeued "\"reason\": \"$1\""
    say "$1; requeueing (restart $((restart + 1)) of at most $max_restarts)"
    patiently scontrol requeue "$SLURM_JOB_ID" || fail 75 "Slurm refuses to requeue. Submit the same command again to continue."
    trap 'exit 0' TERM # Slurm ends this script now
    sleep 600 &
    wait $!
    fail 75 "requeued, but Slurm did not end this script"
}

# Set `nodes` to those that can be used. The first one runs this script and rank 0.
find_nodes() {
    local try
    for try in {1..5}; do
        mapfile -t nodes < <(answering)
        [ "${nodes[0]:-}" != "${all_nodes[0]}" ] || break
        say "WARNING: the first node, ${all_nodes[0]}, does not answer (try $try of 5)"
        sleep 15
    done
    [ "${nodes[0]:-}" = "${all_nodes[0]}" ] || requeue "the first node does not answer, or fails NODE_CHECK=${NODE_CHECK:-true}"
    [ ${#nodes[@]} -ge "${LAUNCH_MIN_NODES:-1}" ] || requeue "only ${#nodes[@]} nodes answer, and LAUNCH_MIN_NODES=$LAUNCH_MIN_NODES"
    if [ ${#nodes[@]} -lt ${#all_nodes[@]} ]; then
        say "WARNING: $((${#all_nodes[@]} - ${#nodes[@]})) of ${#all_nodes[@]} nodes do not answer and are left out"
    fi
}

stop_requested() { # The batch script got USR1 (#SBATCH --signal)
    signalled=1 stopping=1
    say "the time limit is near (USR1)${pid:+: asking the ranks to save}"
    [ -n "$pid" ] || return 0
    # In a process that has just begun and cannot catch it yet the signal would be deadly.
    local age=$((SECONDS - begun)) quiet=${LAUNCH_QUIET_SECONDS:-30}
    (sleep $((age < quiet ? quiet - age : 0)) && kill -USR1 "$pid") 2>/dev/null &
}

# launch DIRECTORY upscale VERB ...: one rank per GPU until it has finished. Records go to DIRECTORY/slurm.
#   exit code 0   return           75   requeue, and continue in the next allocation
#   a node died   a new step on the nodes that answer, from the newest checkpoint   anything else   fail at once
launch() {
    local nodes before lost code attempt=0 records=$1/slurm verb=$3 pid='' begun signalled stopping=0
    mkdir -p "$records"
    shift
    trap stop_requested USR1
    [ "$stop_asked" = 0 ] || stop_requested
    find_nodes
    while :; do
        [ "$stopping" = 0 ] || requeue "no time is left for another step"
        code=0
        step "$@" || code=$?
        case $code in
        0)
            event finished
            say "finished"
            return 0
            ;;
        75) requeue "the ranks have saved" ;;
        esac
        case $(job_state) in
        RUNNING | UNKNOWN) ;;
        *) fail "$code" "Slurm ended the job before the ranks had saved; the newest checkpoint holds" ;;
        esac
        before=("${nodes[@]}")
        find_nodes
        lost=$(comm -23 <(printf '%s\n' "${before[@]}" | sort) <(printf '%s\n' "${nodes[@]}" | sort) | paste -sd,)
        if [ -z "$lost" ] && grep -q 'Node failure' "$logs/srun.log"; then
            lost="a node that answers again"
        fi
        if [ -z "$lost" ] && [ -f "$logs/silent" ]; then
            lost="a rank that showed no life"
        fi
        if [ -z "$lost" ]; then
            failing_rank
            fail "$code" "all nodes answer, so a rank failed by itself (exit code $code). Not started again."
        fi
        attempt=$((attempt + 1))
        say "lost $lost (the step ended with $code)"
        event lost "\"nodes\": \"$lost\""
        [ $((restart + attempt)) -le "$max_restarts" ] || fail 1 "started again $((restart + attempt - 1)) times already \
(LAUNCH_MAX_RESTARTS=$max_restarts)"
    done
}

# pretrain ARGUMENTS OF upscale train...
pretrain() {
    local directory watch
    allocation
    directory=$(python -m upscale.launch.slurm.questions directory "$@")
    if [ -n "${LAUNCH_FOLLOWUP:-}" ]; then
        python -m upscale.launch.slurm.followups --run "$directory" --every "${LAUNCH_FOLLOWUP_SECONDS:-60}" "$LAUNCH_FOLLOWUP" &
        watch=$!
        # shellcheck disable=SC2064 # the number is known now
        trap "kill $watch 2>/dev/null" EXIT
    fi
    claim "$directory"
    launch "$directory" upscale train "$@"
    if [ -n "${LAUNCH_FOLLOWUP:-}" ]; then
        python -m upscale.launch.slurm.followups --run "$directory" "$LAUNCH_FOLLOWUP"
    fi
}

# finetune RUN STEP CORPUS/KIND [section.key=value ...], with KIND pretrained or scratch
finetune() {
    local run=$1 step=$2 corpus=${3%/*} kind=${3#*/} name directory init shape
    shift 3
    allocation
    name=$(basename "$run")-$corpus-$kind
    case $kind in
    pretrained)
        [ "$step" = newest ] || name+=-$(printf 'step-%08d' "$step")
        init=(init.from="$run" init.step="$step")
        ;;
    scratch) init=(init.from=null) ;;
    esac
    shape=$(python -m upscale.launch.slurm.questions shape "$run" --nodes ${#all_nodes[@]} --ranks-per-node "$ranks_per_node" \
        --config "configs/finetune_$corpus.yaml" "$@") || fail 2 "this job cannot fine-tune $run; why stands above"
    directory=$(dirname "$run")/$name
    claim "$directory"
    # shellcheck disable=SC2086 # one override a word
    launch "$directory" upscale train --config "configs/finetune_$corpus.yaml" run.name="$name" run.dir="$directory" \
        "${init[@]}" $shape "$@"
}
