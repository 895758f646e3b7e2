#!/bin/sh
# resource-agents 4.12.0 of Debian 12 (1:4.12.0-2), with xmllint of libxml2-utils.
#
# Guess before it was run: metadata that follow OCF 1.1, which replaced attribute "unique" of a parameter by "unique-group", pass the
# checks of the package, for its own agents say that they follow 1.1 and its shell functions know the 1.1 names.
# Seen: both of its schemas, ra-api-1.dtd that ocf-tester uses and metadata.rng, know "unique" alone and refuse "unique-group", while
# they take the role names Promoted and Unpromoted of 1.1. "unique", which 1.1 keeps as deprecated, passes everywhere.
# Output seen: "unique: dtd 0, rng 0" and "unique-group: dtd 3, rng 3".
set -eu
command -v xmllint > /dev/null || { echo "needs xmllint (libxml2-utils)" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -q -o APT::Sandbox::User=root download resource-agents > /dev/null
dpkg -x resource-agents_*.deb .
schemas=usr/share/resource-agents
check() {
    cat > agent.xml << XML
<?xml version="1.0"?>
<resource-agent name="a" version="1">
  <version>1.1</version>
  <longdesc lang="en">a</longdesc>
  <shortdesc lang="en">a</shortdesc>
  <parameters>
    <parameter name="p" $1 required="1">
      <longdesc lang="en">p</longdesc>
      <shortdesc lang="en">p</shortdesc>
      <content type="string"/>
    </parameter>
  </parameters>
  <actions>
    <action name="monitor" timeout="20s" interval="10s" role="Promoted"/>
  </actions>
</resource-agent>
XML
    dtd=0 rng=0
    xmllint --nonet --noout --dtdvalid $schemas/ra-api-1.dtd agent.xml 2> /dev/null || dtd=$?
    xmllint --nonet --noout --relaxng $schemas/metadata.rng agent.xml 2> /dev/null || rng=$?
    echo "${1%%=*}: dtd $dtd, rng $rng"
}
{ check 'unique="1"'; check 'unique-group="p"'; } | tee seen
printf 'unique: dtd 0, rng 0\nunique-group: dtd 3, rng 3\n' | cmp -s - seen
