#!/bin/sh
# The resource agents for Pacemaker without a cluster. etc/ocf/hadm-disk: its metadata, and its exit status and promotion score for every
# answer that hadm-nbd can give, none at all, and one that does not come; hadmctl and crm_attribute are played by scripts here.
# etc/ocf/hadmd: a life of each program that it starts, with the real ones. etc/fencing/pacemaker: its exit status and its constraint for
# every state of the lost node, on a cluster's configuration in a file.
# Where ocf-tester and xmllint are installed (Debian packages resource-agents, libxml2-utils), it has to pass that.
# Where crm_verify and crm_simulate are installed (Debian package pacemaker-cli-utils), a cluster of two nodes is planned with the agent's
# scores. Where pcs and crmsh are, and it is root that asks, they configure a cluster with both agents. The rest needs no root.
#
# Usage: tests/ocf.sh DIRECTORY   (where the programs are: the last part asks a real hadm-nbd)
set -eu
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin
# shellcheck source=tests/wait-for.sh
. tests/wait-for.sh
dir=$(mktemp -d "${TMPDIR:-/tmp}/hadmd-ocf.XXXXXX")
pid=
trap '[ -z "$pid$(started)" ] || { kill -CONT $pid $(started); end_all 8 $pid $(started); } 2> /dev/null; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM HUP
# What the agent started in this folder.
started() { pgrep -f -- "--control $dir/run/" || :; }
fail() { echo "ocf: $1" >&2; cat "$dir/out" >&2 2> /dev/null || :; exit 1; }

mkdir "$dir/bin"
# state: exit status, role, disk. What would change the role is refused where there is a file "refuse".
cat > "$dir/bin/hadmctl" << LINES
#!/bin/sh
read -r status role disk < "$dir/state"
case " \$* " in
    *" status "*)
        [ "\$status" != hang ] || exec sleep 60
        [ "\$status" = 0 ] || { echo "hadmctl: status \$status"; exit "\$status"; }
        echo '{"attached":true,"resources":[{"id":0,"name":"data","site":0,"role":"'"\$role"'","follows":1,"disk":"'"\$disk"'","peers":[{"site":1,"in_sync":'"\$(cat "$dir/in_sync")"',"said":"a \\\\"role\\\\": \\\\"primary\\\\" of it"}],"sentence":"data"}]}'
        ;;
    *" primary "* | *" secondary "*)
        [ ! -e "$dir/refuse" ] || { echo "hadmctl: site 1 is primary: make it secondary first"; exit 5; }
        case " \$* " in *" primary "*) role=primary ;; *) role=secondary ;; esac
        echo "\$status \$role \$disk" > "$dir/state"
        ;;
    *) exit 2 ;;
esac
LINES
cat > "$dir/bin/crm_attribute" << LINES
#!/bin/sh
case " \$* " in *" --delete "*) echo none ;; *) echo "\$5" ;; esac > "$dir/score"
# --promotion --lifetime reboot --update SCORE
LINES
cat > "$dir/bin/fencing" << LINES
#!/bin/sh
echo "\$HADM_RESOURCE \$*" >> "$dir/fencing.log"
LINES
echo true > "$dir/in_sync"
chmod 755 "$dir"/bin/*
export PATH="$dir/bin:$PATH" HA_RSCTMP="$dir/tmp" OCF_RESOURCE_INSTANCE=data:0 OCF_RESKEY_resource=data OCF_RESKEY_ask_timeout=1
export OCF_RESKEY_hadmctl="$dir/bin/hadmctl" OCF_RESKEY_CRM_meta_interval=10000 OCF_RESKEY_CRM_meta_notify_type=post

agent=hadm-disk
# expect ACTION STATUS SCORE: the score that it sets, "-" where it sets none.
expect() {
    rm -f "$dir/score"
    status=0
    etc/ocf/$agent "$1" > "$dir/out" 2>&1 || status=$?
    [ "$status" = "$2" ] || fail "$(cat "$dir/state"): $1 ends with $status, not $2"
    score=-
    [ ! -e "$dir/score" ] || score=$(cat "$dir/score")
    [ "$score" = "$3" ] || fail "$(cat "$dir/state"): $1 sets score $score, not $3"
}
is() { echo "$*" > "$dir/state"; }

# A life.
is 0 secondary up to date
expect monitor 7 -
expect start 0 1000
expect start 0 1000
expect monitor 0 1000
expect promote 0 10000
expect promote 0 10000
expect monitor 8 10000
expect notify 0 10000
expect demote 0 1000
expect demote 0 1000
expect promote 0 10000
expect stop 0 none
expect monitor 7 -
expect stop 0 none
[ "$(cat "$dir/state")" = "0 secondary up to date" ] || fail "it stopped as primary"

# Every state.
expect start 0 1000
is 0 secondary consistent; expect monitor 0 10
is 0 secondary just created; expect monitor 0 5
is 0 secondary outdated; expect monitor 0 none
is 0 secondary inconsistent; expect monitor 0 none
is 0 secondary failed; expect monitor 1 none
is 0 primary failed; expect monitor 8 10000
is 0 "" ""; expect monitor 1 none
is 1; expect monitor 1 none
is 2; expect monitor 6 none
is 3; expect monitor 7 none
expect stop 0 none
expect start 1 -
is 4; expect monitor 1 none
expect stop 1 -
is 5; expect monitor 1 none
is hang; expect monitor 1 none
expect stop 1 -

# The primary that a person made counts, started or not.
is 0 primary up to date; rm -rf "$dir/tmp"; expect monitor 8 10000
# A refusal has its reason, for crm_mon.
is 0 secondary up to date; : > "$dir/refuse"
OCF_RESKEY_CRM_meta_timeout=3000 expect promote 1 -
grep -q '^ocf-exit-reason:hadmctl: site 1 is primary' "$dir/out" || fail "no reason for the refusal"
# hadm-nbd may notice later than the cluster that the other one is gone.
(sleep 1; rm "$dir/refuse") &
expect promote 0 10000
: > "$dir/refuse"
is 0 primary up to date; OCF_RESKEY_CRM_meta_timeout=0 expect demote 1 -
OCF_RESKEY_CRM_meta_timeout=0 expect stop 1 -
rm "$dir/refuse"

# A primary in sync has the constraint removed, and nobody else.
export OCF_RESKEY_fencing="$dir/bin/fencing"
rm -f "$dir/fencing.log"
is 0 secondary up to date; expect start 0 1000; expect monitor 0 1000
echo false > "$dir/in_sync"; is 0 primary up to date; expect monitor 8 10000
[ ! -e "$dir/fencing.log" ] || fail "a constraint is removed that is needed"
echo true > "$dir/in_sync"; expect monitor 8 10000
[ "$(cat "$dir/fencing.log")" = "data remove" ] || fail "no constraint is removed"
export OCF_RESKEY_fencing="$dir/none"
rm -rf "$dir/tmp"

# Wrong parameters and actions.
OCF_RESKEY_resource='' expect validate-all 6 -
OCF_RESKEY_resource='a b' expect monitor 6 -
OCF_RESKEY_ask_timeout=0 expect validate-all 6 -
OCF_RESKEY_hadmctl=$dir/none expect start 5 -
expect validate-all 0 -
expect migrate 3 -
expect meta-data 0 -
for action in start stop promote demote monitor notify validate-all meta-data; do
    grep -q "<action name=\"$action\"" "$dir/out" || fail "the metadata lack $action"
done
if command -v ocf-tester > /dev/null && command -v xmllint > /dev/null; then
    is 0 secondary up to date
    (unset OCF_RESOURCE_INSTANCE
    ocf-tester -n data -o resource=data -o hadmctl="$dir/bin/hadmctl" "$PWD/etc/ocf/hadm-disk") > "$dir/out" 2>&1 || fail "ocf-tester fails"
    echo "ocf: hadm-disk passes ocf-tester"
else
    echo "ocf: SKIPPED: ocf-tester and xmllint are not installed (Debian packages resource-agents and libxml2-utils)"
fi

# planned SCORE-OF-LEFT SCORE-OF-RIGHT PROMOTED: where Pacemaker would have the primary, "none" for nowhere.
planned() {
    score() { [ "$2" = none ] || echo "<nvpair id=\"$1-p\" name=\"master-disk\" value=\"$2\"/>"; }
    node() {
        echo "<node_state id=\"$1\" uname=\"$2\" in_ccm=\"true\" crmd=\"online\" join=\"member\" expected=\"member\">
            <transient_attributes id=\"$1\"><instance_attributes id=\"status-$1\">$(score "$1" "$3")</instance_attributes></transient_attributes>
            <lrm id=\"$1\"><lrm_resources/></lrm></node_state>"
    }
    cat > "$dir/cib.xml" << LINES
<cib crm_feature_set="3.16.2" validate-with="pacemaker-3.9" epoch="1" num_updates="0" admin_epoch="0" have-quorum="1" dc-uuid="1">
  <configuration>
    <crm_config><cluster_property_set id="o"><nvpair id="o1" name="stonith-enabled" value="false"/></cluster_property_set></crm_config>
    <nodes><node id="1" uname="left"/><node id="2" uname="right"/></nodes>
    <resources>
      <clone id="disk-clone">
        <meta_attributes id="m"><nvpair id="m1" name="promotable" value="true"/><nvpair id="m2" name="notify" value="true"/></meta_attributes>
        <primitive id="disk" class="ocf" provider="hadm" type="hadm-disk">
          <instance_attributes id="a"><nvpair id="a1" name="resource" value="data"/></instance_attributes>
          <operations>
            <op id="p" name="monitor" interval="10s" role="Promoted" timeout="20s"/>
            <op id="u" name="monitor" interval="11s" role="Unpromoted" timeout="20s"/>
          </operations>
        </primitive>
      </clone>
    </resources>
    <constraints>${constraint:-}</constraints>
  </configuration>
  <status>$(node 1 left "$1") $(node 2 right "$2")</status>
</cib>
LINES
    crm_verify --xml-file "$dir/cib.xml" > "$dir/out" 2>&1 || fail "crm_verify finds fault"
    crm_simulate --xml-file "$dir/cib.xml" --run > "$dir/out" 2>&1 || fail "crm_simulate fails"
    found=$(sed -n 's/.*Promote .*-> Promoted \([a-z]*\) .*/\1/p' "$dir/out")
    [ "${found:-none}" = "$3" ] || fail "scores $1 and $2: promoted is ${found:-none}, not $3"
}
if command -v crm_simulate > /dev/null && command -v crm_verify > /dev/null; then
    {
        echo '<cib validate-with="pacemaker-3.9" epoch="1" num_updates="0" admin_epoch="0" have-quorum="1">'
        sed 1d etc/pacemaker/mirror.xml
        for node in "1 left" "2 right"; do
            echo "<node_state id=\"${node% *}\" uname=\"${node#* }\" in_ccm=\"true\" crmd=\"online\" join=\"member\" expected=\"member\"/>"
        done | sed '1s/^/<status>/; $s/$/<\/status><\/cib>/'
    } > "$dir/cib.xml"
    crm_verify --xml-file "$dir/cib.xml" -VV > "$dir/out" 2>&1 || fail "crm_verify finds fault with the sample"
    planned 10000 1000 left
    planned 1000 10000 right
    planned 10 1000 right
    planned 1000 10 left
    planned none 5 right
    planned 1000 none left
    planned none none none
    # The constraint of the fencing handler at right outweighs every score.
    here='<expression id="e" attribute="#uname" operation="ne" value="right"/>'
    constraint="<rsc_location id=\"c\" rsc=\"disk-clone\"><rule id=\"here\" role=\"Promoted\" score=\"-INFINITY\">$here</rule></rsc_location>"
    planned 1000 10 right
    planned 10000 none none
    constraint=
    echo "ocf: crm_simulate promotes the freshest disk, and none that is known to be bad"
else
    echo "ocf: SKIPPED: crm_verify and crm_simulate are not installed (Debian package pacemaker-cli-utils)"
fi

# The tools that people configure a cluster with take both agents by their metadata: nothing has to be forced, and nothing is warned of.
# installed COMMAND...: with the agents where Pacemaker looks for them, on the configuration in $dir/tools.xml.
mkdir -p "$dir/agents/hadm"
cp etc/ocf/* "$dir/agents/hadm"
installed() {
    status=0
    # shellcheck disable=SC2016 # that is for the inner shell
    (unset OCF_RESOURCE_INSTANCE; CIB_file="$dir/tools.xml" unshare --mount sh -euc '
        mount -t overlay none -o "lowerdir=$0:/usr/lib/ocf/resource.d" /usr/lib/ocf/resource.d
        exec timeout 60 "$@"' "$dir/agents" "$@") > "$dir/out" 2>&1 < /dev/null || status=$?
    return $status
}
taken() {
    installed "$@" || fail "$1 ends with $status: $*"
    # That there is no cluster and no fencing is nothing against the agents.
    ! grep -v '(unpack_config)\|(cluster_status)' "$dir/out" | grep -qi 'warning\|error\|deprecated' || fail "$1 finds fault: $*"
}
# described AGENT COMMAND...: with every parameter of the metadata.
described() {
    of=$1
    shift
    taken "$@" "ocf:hadm:$of"
    for parameter in $(etc/ocf/"$of" meta-data | sed -n 's/.*<parameter name="\([^"]*\)".*/\1/p'); do
        grep -q "$parameter" "$dir/out" || fail "$1 does not describe parameter $parameter of $of"
    done
}
placed_by() {
    crm_verify --xml-file "$dir/tools.xml" > "$dir/out" 2>&1 || fail "crm_verify finds fault with what $1 writes"
    grep -q 'name="promotable" value="true"' "$dir/tools.xml" || fail "$1 writes no promotable clone"
}
if [ "$(id -u)" != 0 ] || ! unshare --mount true 2> /dev/null; then
    echo "ocf: SKIPPED: pcs and crmsh, for want of root and the right to make namespaces"
else
    if command -v pcs > /dev/null; then
        cibadmin --empty > "$dir/tools.xml"
        for of in hadm-disk hadmd; do described $of pcs resource describe; done
        taken pcs -f "$dir/tools.xml" property set stonith-enabled=false
        taken pcs -f "$dir/tools.xml" resource create nbd ocf:hadm:hadmd binary=/usr/sbin/hadm-nbd control=/run/hadm/hadm-nbd.sock \
            op monitor interval=2s timeout=20s clone interleave=true
        taken pcs -f "$dir/tools.xml" resource create disk ocf:hadm:hadm-disk resource=data op monitor interval=2s timeout=20s role=Promoted \
            monitor interval=5s timeout=20s role=Unpromoted promotable notify=true interleave=true
        placed_by pcs
        ! installed pcs -f "$dir/tools.xml" resource create other ocf:hadm:hadm-disk resourse=data || fail "pcs does not read the metadata"
        echo "ocf: pcs $(pcs --version) takes both agents"
    else
        echo "ocf: SKIPPED: pcs is not installed (Debian package pcs)"
    fi
    if command -v crm > /dev/null; then
        cibadmin --empty > "$dir/tools.xml"
        for of in hadm-disk hadmd; do described $of crm ra info; done
        cat > "$dir/commands" << LINES
configure
property stonith-enabled=false
primitive nbd ocf:hadm:hadmd params binary=/usr/sbin/hadm-nbd control=/run/hadm/hadm-nbd.sock op monitor interval=2s timeout=20s
clone nbd-clone nbd meta interleave=true
primitive disk ocf:hadm:hadm-disk params resource=data op monitor interval=2s timeout=20s role=Promoted op monitor interval=5s timeout=20s role=Unpromoted
clone disk-clone disk meta promotable=true notify=true interleave=true
verify
commit
LINES
        taken crm -f "$dir/commands"
        placed_by crm
        echo "ocf: $(crm --version) takes both agents"
    else
        echo "ocf: SKIPPED: crm is not installed (Debian package crmsh)"
    fi
fi

# handled IN_CCM CRMD EXPECTED STATUS: the fencing handler's exit status for that state of the lost node; $last is the operation that its
# disk had last, and the result; $quorum is 1 where there is a majority.
resource=data last='' quorum=1 notice=1 patience=1
handled() {
    history=
    [ -z "$last" ] || history="<lrm id=\"2\"><lrm_resources><lrm_resource id=\"disk\" type=\"hadm-disk\" class=\"ocf\" provider=\"hadm\">\
<lrm_rsc_op id=\"disk_last_0\" operation=\"${last% *}\" rc-code=\"${last#* }\"/></lrm_resource></lrm_resources></lrm>"
    # One that succeeds has the time for it.
    [ "$4" = 5 ] || patience=20
    sed "s|<status>.*|<status><node_state id=\"2\" uname=\"right\" in_ccm=\"$1\" crmd=\"$2\" join=\"member\" expected=\"$3\">$history</node_state></status></cib>|
        /<cib /s|crm_feature_set=\"[^\"]*\"|crm_feature_set=\"3.0.14\"|; /<cib /s|have-quorum=\"1\"|have-quorum=\"$quorum\"|
        /^<\/cib>/d; s|<constraints>.*|<constraints>${constraint:-}</constraints>|" \
        "$dir/cib.xml" | sed 's/></>\n</g' > "$dir/fence.xml"
    status=0
    (unset OCF_RESOURCE_INSTANCE; CIB_file="$dir/fence.xml" HADM_RESOURCE=$resource HADM_RESOURCE_ID=0 HADM_LOST_HOSTS=right HADM_FENCE_PATIENCE=$patience \
        HADM_FENCE_NOTICE=$notice etc/fencing/pacemaker) > "$dir/out" 2>&1 || status=$?
    patience=1
    [ "$status" = "$4" ] || fail "the fencing handler ends with $status, not $4, for in_ccm $1, crmd $2, expected $3, last $last, quorum $quorum"
}
placed() { grep -q 'rsc_location id="hadm-fence-data"' "$dir/fence.xml"; }
if command -v cibadmin > /dev/null && [ -e "$dir/cib.xml" ]; then
    handled false offline down 7; placed || fail "no constraint"
    CIB_file="$dir/fence.xml" HADM_RESOURCE=data etc/fencing/pacemaker remove > "$dir/out" 2>&1 || fail "the constraint is not removed"
    ! placed || fail "the constraint is not removed"
    handled 0 0 down 7
    # One that left in order; one that was put off earlier, has been back, and was lost; no majority.
    last="stop 0"; handled false offline down 7
    for last in "start 0" "promote 0" "stop 1" "monitor 0"; do handled false offline down 5; ! placed || fail "a constraint for a node that may be primary"; done
    # The agent removes the constraint while the handler waits: it is not put there again.
    # It may meet the file while that is being written, and then has no answer.
    (wait_for 20 placed; wait_for 10 env CIB_file="$dir/fence.xml" HADM_RESOURCE=data etc/fencing/pacemaker remove) > "$dir/removed" 2>&1 &
    last='' notice=15 patience=20
    handled true online member 5
    notice=1
    wait $!
    ! placed || fail "a constraint that was removed is there again"
    last='' quorum=0
    handled false offline down 5
    handled true online member 5
    quorum=1
    handled true online member 4; placed || fail "no constraint"
    handled false offline member 5; ! placed || fail "a constraint for a node that may be primary"
    handled true offline member 5
    resource=other
    handled false offline down 5
    resource=data
    constraint='<rsc_location id="hadm-fence-data" rsc="disk-clone"><rule id="r" role="Promoted" score="-INFINITY"><expression id="e" attribute="#uname" operation="ne" value="right"/></rule></rsc_location>'
    handled false offline down 6
    handled true online member 6
    constraint=
    echo "ocf: the fencing handler succeeds only for a node that is off, or that gets its constraint"
else
    echo "ocf: SKIPPED: the fencing handler, for want of cibadmin (Debian package pacemaker-cli-utils)"
fi

# A real hadm-nbd, alone: it answers in the words that were played above, refuses a promotion, hangs, and is gone.
sed "s|/var/lib/hadm|$dir|" etc/mirror.xml > "$dir/mirror.xml"
truncate -s 4M "$dir/data.disk"
"$bin/hadm-nbd" -c "$dir/mirror.xml" --hostname left init --clean data > "$dir/out" 2>&1 || fail "no metadata"
"$bin/hadm-nbd" -c "$dir/mirror.xml" --hostname left run --log stderr --control "$dir/control" --sockets "$dir" 2> "$dir/log" &
pid=$!
wait_for 20 test -S "$dir/control" || fail "hadm-nbd does not start"
export OCF_RESKEY_control="$dir/control" OCF_RESKEY_hadmctl="$bin/hadmctl" OCF_RESKEY_ask_timeout=5
: > "$dir/state"
expect monitor 7 -
expect start 0 5
expect monitor 0 5
expect promote 1 -
grep -q 'ocf-exit-reason:.*site 1 may have newer data' "$dir/out" || fail "no reason for the refusal"
expect stop 0 none
expect monitor 7 -
OCF_RESKEY_resource=other expect monitor 6 none
kill -STOP $pid
OCF_RESKEY_ask_timeout=1 expect monitor 1 none
kill -CONT $pid
end_all 8 $pid
pid=
expect monitor 7 none
echo "ocf: hadm-disk has the right status and score for every answer"

# The agent for the daemons.
agent=hadmd
unset OCF_RESKEY_control
address=127.$(($$ / 65536 % 100 + 100)).$(($$ / 256 % 256)).$(($$ % 256))
sed -i "s|<serverip>127.0.0.1|<serverip>$address|" "$dir/mirror.xml"
export OCF_RESKEY_config="$dir/mirror.xml" OCF_RESKEY_ask_timeout=5
life() {
    : > "$dir/state"
    export OCF_RESKEY_control="$dir/run/$1.sock" OCF_RESKEY_binary="$bin/$1" OCF_RESKEY_options="$2"
    expect monitor 7 -
    expect stop 0 -
    expect start 0 -
    expect start 0 -
    expect monitor 0 -
    expect reload 0 -
    process=$(started)
    [ "$(echo "$process" | wc -w)" = 1 ] || fail "not one $1 runs: $process"
    # One that hangs is a failure, and is ended all the same.
    kill -STOP "$process"
    OCF_RESKEY_ask_timeout=1 expect monitor 1 -
    OCF_RESKEY_ask_timeout=1 OCF_RESKEY_CRM_meta_timeout=4000 expect stop 0 -
    expect start 0 -
    process=$(started)
    rm "$dir/run/$1.sock"
    [ "$1" = hadmd ] || expect monitor 1 -
    kill -9 "$process"
    wait_for 10 sh -c "! kill -0 $process 2> /dev/null" || fail "$1 lives on"
    expect monitor 7 -
    expect start 0 -
    expect stop 0 -
    expect monitor 7 -
    [ -z "$(started)" ] || fail "$1 runs on"
}
life hadmd "--no-kmod-check --hostname left --log stderr"
# The option is one of the program, not of its command.
sed -i "s|<hostname>left|<hostname>$(hostname)|" "$dir/mirror.xml"
life hadm-nbd "--log stderr --sockets $dir"
OCF_RESKEY_control=run expect validate-all 6 -
OCF_RESKEY_binary=$bin/hadmctl expect validate-all 6 -
OCF_RESKEY_binary=$dir/hadmd expect start 5 -
OCF_RESKEY_config=$dir/none.xml expect start 6 -
OCF_RESKEY_config=$dir/none.xml expect stop 0 -
OCF_RESKEY_ask_timeout=x expect monitor 6 -
expect promote 3 -
export OCF_RESKEY_binary="$bin/hadmd" OCF_RESKEY_control="$dir/run/hadmd.sock" OCF_RESKEY_options="--no-kmod-check --log stderr"
echo "<hadm>" > "$dir/bad.xml"
OCF_RESKEY_config=$dir/bad.xml expect start 6 -
grep -q "ocf-exit-reason:.*bad.xml" "$dir/out" || fail "no reason for the faulty configuration"
expect meta-data 0 -
for action in start stop monitor reload validate-all meta-data; do
    grep -q "<action name=\"$action\"" "$dir/out" || fail "the metadata lack $action"
done
if command -v ocf-tester > /dev/null && command -v xmllint > /dev/null; then
    (unset OCF_RESOURCE_INSTANCE
    ocf-tester -n daemon -o binary="$OCF_RESKEY_binary" -o control="$OCF_RESKEY_control" -o options="$OCF_RESKEY_options" \
        -o config="$dir/mirror.xml" -o hadmctl="$bin/hadmctl" "$PWD/etc/ocf/hadmd") > "$dir/out" 2>&1 || fail "ocf-tester fails"
    echo "ocf: hadmd passes ocf-tester"
fi
echo "ocf: hadmd starts, watches and ends both daemons"
