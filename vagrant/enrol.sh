#!/usr/bin/env bash
# Runs outside, once the lab's machines are up: collects the record of each node, and commits all of them, with the lab's
# policy, on each. Running it again brings the policy up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly LAB=${LAB:-tests/lab/three-tier.yaml}
readonly POLICY=/etc/bulkhead/policy

mapfile -t machines < <(vagrant status --machine-readable | awk -F, '$3 == "state" && $4 == "running" { print $2 }' |
    grep '^lab-')

records=''
nodes=()
for machine in "${machines[@]}"; do
    if record=$(vagrant ssh --no-tty "$machine" -c 'sudo cat /etc/bulkhead/node.yaml 2>/dev/null'); then
        records+="$record"$'\n---\n'
        nodes+=("$machine")
    fi
done
for machine in "${nodes[@]}"; do
    vagrant ssh --no-tty "$machine" -c "sudo bash -euo pipefail -c '
        cd /opt/bulkhead-src && PYTHONPATH=tests python3 -m lab $LAB --policy $POLICY
        cat >$POLICY/nodes.yaml
        git -C $POLICY add -A
        git -C $POLICY -c user.name=lab -c user.email=lab@localhost commit -q --allow-empty -m Enrol'" <<<"${records%$'\n---\n'}"
done
