#!/usr/bin/env bash
# Runs inside a virtual machine, as root: at `vagrant provision`, and in the lab at every boot, since the wires' addresses
# do not outlive one.
#
#   tests                  run every test
#   router LAB             be the router between the hosts that the file LAB describes
#   host LAB NAME          be one of them, with an agent
#   stranger LAB NAME      be one of them, without
set -euo pipefail
cd /opt/bulkhead-src

readonly ETC=/etc/bulkhead

# Devices of the lab in the order of its hosts: all but loopback and the one that Vagrant itself comes in by.
wires() {
    local own
    own=$(ip -json route show default | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["dev"])')
    ip -json link | python3 -c 'import json, sys
print(*(one["ifname"] for one in json.load(sys.stdin) if one["ifname"] not in ("lo", sys.argv[1])))' "$own"
}

# What sets up namespaces in the lab of one machine sets up this machine, too.
connect() {
    local lab=$1 name=$2 script
    dpkg-query -W python3-yaml nftables >/dev/null 2>&1 || {
        apt-get update -q
        apt-get install -q -y --no-install-recommends python3-yaml nftables
    }
    # shellcheck disable=SC2046  a word for each device
    script=$(PYTHONPATH=tests python3 -m lab "$lab" --wire "$name" $(wires))
    bash -euo pipefail -c "$script"
}

# The key never leaves this machine; enrol.sh collects the records.
make_node() {
    local name=$1
    [[ -e $ETC/node-key.pem ]] && return
    (
        umask 077
        openssl rand -hex 32 >"$ETC/node-key.passphrase"
        openssl genpkey -quiet -algorithm X25519 -aes-256-cbc -pass "file:$ETC/node-key.passphrase" \
            -out "$ETC/node-key.pem"
    )
    cat >"$ETC/agent.toml" <<END
host = "$name"
node_key = "$ETC/node-key.pem"
node_key_passphrase = "$ETC/node-key.passphrase"
END
    {
        printf 'apiVersion: bulkhead/v1alpha1\nkind: Node\nmetadata: {name: %s}\naddresses:\n' "$name"
        ip -json addr show dev "$(wires)" scope global | python3 -c 'import json, sys
for one in json.load(sys.stdin)[0]["addr_info"]:
    print("  -", one["local"])'
        printf 'key: '
        # The last 32 bytes of its DER are the public key itself.
        openssl pkey -in "$ETC/node-key.pem" -passin "file:$ETC/node-key.passphrase" -pubout -outform DER |
            tail -c 32 | base64
    } >"$ETC/node.yaml"
}

case $1 in
tests)
    tools/setup.sh
    make --no-print-directory test
    ;;
router)
    connect "$2" router
    ;;
host)
    [[ -e $ETC/node-key.pem ]] || tools/install.sh
    connect "$2" "$3"
    make_node "$3"
    systemctl enable --now bulkhead
    ;;
stranger)
    connect "$2" "$3"
    ;;
esac
