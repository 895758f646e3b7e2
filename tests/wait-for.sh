# shellcheck shell=sh
# Waits in the scripts that show or try whole daemons: for a condition, with a deadline. They source it from the top of the
# source tree; it does nothing by itself.

# wait_for SECONDS COMMAND...: until the command succeeds. Fails when it has not after these seconds, however long each try took.
wait_for() {
    read -r uptime _ < /proc/uptime
    # Rounded up: no wait is shorter. A parameter belongs to this call alone, for the command may itself wait.
    set -- $((${uptime%.*} + $1 + 1)) "$@"
    until third_on "$@"; do
        read -r uptime _ < /proc/uptime
        [ "${uptime%.*}" -lt "$1" ] || return 1
        sleep 0.05
    done
}
third_on() { shift 2; "$@"; }

# end_all SECONDS PID...: asks processes to end, and puts an end to those that have not within these seconds.
end_all() {
    patience=$1
    shift
    for pid; do kill "$pid" 2> /dev/null || :; done
    for pid; do
        { wait_for "$patience" sh -c "! kill -0 $pid" || kill -9 "$pid"; } 2> /dev/null || :
    done
}
