# shellcheck shell=sh
# Waits in the scripts that show or try whole daemons: for a condition, with a deadline. They source it from the top of the
# source tree; it does nothing by itself.

# wait_for SECONDS COMMAND...: until the command succeeds.
wait_for() {
    left=$(($1 * 20))
    shift
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || return 1
        sleep 0.05
    done
}

# end_all SECONDS PID...: asks processes to end, and puts an end to those that have not within these seconds.
end_all() {
    patience=$1
    shift
    for pid; do kill "$pid" 2> /dev/null || :; done
    for pid; do
        { wait_for "$patience" sh -c "! kill -0 $pid" || kill -9 "$pid"; } 2> /dev/null || :
    done
}
