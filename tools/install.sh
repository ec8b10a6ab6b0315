#!/usr/bin/env bash
# Installs Bulkhead on a Debian 12 host: an environment of its own in /opt/bulkhead, the units, and the settings and an
# observing policy where there are none yet. Needs root. Starts and enables nothing; running it again is the upgrade,
# which `systemctl restart bulkhead` then puts to work.
set -euo pipefail

readonly ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly SYSTEM_PYTHON=/usr/bin/python3
readonly PREFIX=/opt/bulkhead
readonly ETC=/etc/bulkhead
readonly UNITS=/etc/systemd/system
# What the agent runs on; bcc is a Debian package that only the system's own Python sees.
readonly PACKAGES=(python3 python3-venv python3-bpfcc libbpf1 linux-libc-dev git)

fail() {
    echo "install: $*" >&2
    exit 1
}

install_packages() {
    local name missing=()
    for name in "${PACKAGES[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || missing+=("$name")
    done
    ((${#missing[@]})) || return 0
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -q -y --no-install-recommends "${missing[@]}"
}

install_program() {
    [[ -x $PREFIX/bin/python ]] || "$SYSTEM_PYTHON" -m venv --system-site-packages "$PREFIX"
    "$PREFIX/bin/python" -m pip install --quiet --upgrade "$ROOT[proxy,rego]"
    "$PREFIX/bin/python" -c 'import bcc' || fail "python3-bpfcc is installed but cannot be imported"
    ln -sfn "$PREFIX/bin/bulkhead" /usr/local/bin/bulkhead
}

install_units() {
    install -D -m 644 "$ROOT/systemd/bulkhead.sysusers.conf" /usr/lib/sysusers.d/bulkhead.conf
    systemd-sysusers /usr/lib/sysusers.d/bulkhead.conf
    install -m 644 "$ROOT"/systemd/*.service "$UNITS"
    # Not in a chroot or an image that is being built: there is no manager to tell.
    [[ ! -d /run/systemd/system ]] || systemctl daemon-reload
}

# What is there is the operator's and stays.
install_settings() {
    install -d -m 755 "$ETC"
    [[ -e $ETC/agent.toml ]] || install -m 644 "$ROOT/systemd/agent.toml" "$ETC/agent.toml"
    [[ ! -e $ETC/policy ]] || return 0
    git init -q -b main "$ETC/policy"
    cat >"$ETC/policy/bulkhead.yaml" <<END
apiVersion: bulkhead/v1alpha1
kind: Repository
trustDomain: example.org
defaults: {mode: observe}
END
    git -C "$ETC/policy" add bulkhead.yaml
    git -C "$ETC/policy" -c user.name=bulkhead -c user.email=bulkhead@localhost commit -q -m "Observe"
}

[[ $EUID -eq 0 ]] || fail "needs root"
[[ -e /etc/debian_version ]] || fail "knows Debian only"
install_packages
install_program
install_units
install_settings
echo "install: done; start it with \`systemctl enable --now bulkhead\`"
