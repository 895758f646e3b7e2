# Fish completion of hadmctl. Options and commands are those of --help, so that they never differ; peers and disks are those
# of the programs that run.

# The words that are no options.
function __hadmctl_given
    set -l skip
    for word in (commandline -opc)[2..]
        if set -q skip[1]
            set -e skip
            continue
        end
        switch $word
            case --control --timeout --for --peer --type --hostname --listen --allow-host --disk-control --config
                set skip yes
            case '-*'
            case '*'
                echo -- $word
        end
    end
end

# Asks the daemon that is meant.
function __hadmctl_ask
    set -l words (commandline -opc)
    set -l at (contains -i -- --control $words)
    and set -l control --control $words[(math $at + 1)]
    $words[1] $control --timeout 1 $argv 2>/dev/null
end

function __hadmctl_peers
    __hadmctl_ask status | sed -nE -e 's/^node ([0-9]+) \(([^)]+)\) .*/\1\n\2/p' -e 's/^node ([0-9]+) .*/\1/p' \
        -e 's/^site ([0-9]+) of resource ([0-9]+) .*/\2:\1/p'
end

function __hadmctl_disks
    __hadmctl_ask disk status | sed -n -e '/^no daemon at /d' -e 's/: .*//p'
end

function __hadmctl_help
    set -l words (commandline -opc)
    $words[1] --help 2>/dev/null
end

function __hadmctl_candidates
    set -l given (__hadmctl_given)
    set -l words (commandline -opc)
    switch $words[-1]
        case --peer
            __hadmctl_peers
            return
        case --timeout --for --type --hostname --listen --allow-host
            return
    end
    if string match -q -- '-*' (commandline -ct)
        __hadmctl_help | grep -oE -e '(^|[[:space:][])--?[a-z][a-z-]*' | tr -d '[ '
        return
    end
    switch "$given"
        case ''
            __hadmctl_help | sed -n '/^Commands/,/^$/s/^  \([a-z][a-z]*\).*/\1/p'
        case disk
            __hadmctl_help | sed -n '/^Disk commands/,/^$/s/^  \([a-z][a-z]*\).*/\1/p'
        case why connect disconnect doctor
            __hadmctl_peers
        case wait
            __hadmctl_peers
            echo all
        case loglevel
            printf '%s\n' off error warn info debug trace
        case 'disk *'
            test (count $given) = 2; and __hadmctl_disks
    end
end

function __hadmctl_wants_file
    set -l words (commandline -opc)
    contains -- $words[-1] --control --disk-control --config plan check convert bundle keygen --rotate
end

complete -c hadmctl -n 'not __hadmctl_wants_file' -f -a '(__hadmctl_candidates)'
complete -c hadmctl -n __hadmctl_wants_file -F
