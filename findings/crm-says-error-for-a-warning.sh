#!/bin/sh
# crmsh 4.4.1 of Debian 12 (4.4.1-1+deb12u1) with pacemaker 2.1.5, on a configuration in a file (CIB_file), without a cluster.
#
# Guess before it was run: "crm configure" writes into the file as Pacemaker's own tools do, and reports what crm_verify finds, in its
# words: a line with ERROR means that nothing was written, and that the exit status is not 0.
# Seen: Pacemaker has two warnings of an empty cluster, and crm_verify none with status 0. crm labels the first WARNING and the second
# ERROR, though its own text goes on with "warning:"; it writes the resource, and ends with 0. A script that looks for ERROR takes a success
# for a failure.
# Output seen: "WARNING warning", "ERROR warning", and "status 0, crm_verify 0, written 1".
set -eu
for tool in crm cibadmin crm_verify; do command -v $tool > /dev/null || { echo "needs $tool (crmsh, pacemaker-cli-utils)" >&2; exit 1; }; done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export CIB_file="$work/cib.xml"
cibadmin --empty > cib.xml
crm configure property stonith-enabled=false
status=0 verify=0
crm configure primitive a ocf:pacemaker:Dummy op monitor interval=10s > said 2>&1 || status=$?
crm_verify --xml-file cib.xml || verify=$?
{
    # With colours, without a terminal.
    sed -n 's/.*\(WARNING\|ERROR\).*: (\([a-z_]*\))[[:space:]]*\([a-z]*\):.*/\1 \3/p' said
    echo "status $status, crm_verify $verify, written $(grep -c '<primitive' cib.xml)"
} | tee seen
printf 'WARNING warning\nERROR warning\nstatus 0, crm_verify 0, written 1\n' | cmp -s - seen
