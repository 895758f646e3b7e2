#!/bin/sh
# pacemaker 2.1.5 of Debian 12 (2.1.5-1+deb12u1), cibadmin on a file (CIB_file), without a cluster.
#
# Guess before it was run: crm_feature_set of a configuration in a file says who wrote it, and counts in a cluster of several versions only;
# tools that read the file take any, and so does one that adds a constraint to it.
# Seen: crm_verify, crm_simulate and cibadmin --query take a feature set that is newer than their own (3.16.1). cibadmin --create
# refuses it with status 76 and "Protocol not supported", which names neither the feature set nor the file; only -VVVV does. With an
# older one it works.
# Output seen: "3.16.2: query 0, create 76" and "3.0.14: query 0, create 0".
set -eu
command -v cibadmin > /dev/null || { echo "needs cibadmin (pacemaker-cli-utils)" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
try() {
    cat > cib.xml << XML
<cib crm_feature_set="$1" validate-with="pacemaker-3.9" epoch="1" num_updates="0" admin_epoch="0"><configuration><crm_config/>
<nodes><node id="1" uname="left"/></nodes><resources><primitive id="a" class="ocf" provider="pacemaker" type="Dummy"/></resources>
<constraints/></configuration><status/></cib>
XML
    query=0 create=0
    CIB_file=$work/cib.xml cibadmin --query > /dev/null || query=$?
    CIB_file=$work/cib.xml cibadmin --create --scope constraints --xml-text '<rsc_location id="c" rsc="a" node="left" score="1"/>' 2> said || create=$?
    echo "$1: query $query, create $create"
}
{ try 3.16.2; try 3.0.14; } | tee seen
printf '3.16.2: query 0, create 76\n3.0.14: query 0, create 0\n' | cmp -s - seen
