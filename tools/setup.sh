#!/usr/bin/env bash
# Makes a Debian 12 machine ready to build, test and run Bulkhead. Needs root; running it again costs next to nothing.
#
# Installs the packages that are missing (without starting their services), mounts bpffs, and keeps a virtual
# environment in .venv on the system's own Python: bcc is a Debian package and only that interpreter sees it.
set -euo pipefail

readonly ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly SYSTEM_PYTHON=/usr/bin/python3
readonly VENV=$ROOT/.venv
readonly STAMP=$VENV/stamp
readonly POLICY_RC=/usr/sbin/policy-rc.d
# The language server that the published schema is tested with, and all that it needs, to the version.
readonly EDITOR=$ROOT/tests/editor

readonly PACKAGES=(
    # What the agent runs on.
    python3 python3-venv python3-bpfcc libbpf1 linux-libc-dev git openssh-client gnupg iproute2 ca-certificates
    # What the build and the tests run.
    make gcc libc6-dev procps iputils-ping curl nftables systemd openssh-server etcd-server
    # The workloads of the end-to-end tests and the demonstration.
    redis-server redis-tools nginx-light prometheus dnsmasq-base
)

fail() {
    echo "setup: $*" >&2
    exit 1
}

missing_packages() {
    local name wanted=("${PACKAGES[@]}")
    # Node from elsewhere brings npm along, and Debian's would be at odds with it.
    command -v npm >/dev/null || wanted+=(nodejs npm)
    for name in "${wanted[@]}"; do
        if [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) != installed ]]; then
            echo "$name"
        fi
    done
}

# Debian starts a service as it installs it; 101 is "forbidden by policy". A policy that is already there is kept.
forbid_service_starts() {
    [[ -e $POLICY_RC ]] && return
    trap 'rm -f "$POLICY_RC"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$POLICY_RC"
    chmod 755 "$POLICY_RC"
}

install_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]})) || return 0
    echo "setup: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    forbid_service_starts
    apt-get update -q
    apt-get install -q -y --no-install-recommends "${missing[@]}"
}

mount_file_systems() {
    mountpoint -q /sys/fs/bpf || mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf /sys/fs/bpf
    grep -q ' - cgroup2 ' /proc/self/mountinfo || fail "cgroup2 is not mounted: boot with the unified hierarchy"
}

# What the environment depends on: the requirements, the interpreter, and the place it cannot be moved from.
fingerprint() {
    { cat "$ROOT/pyproject.toml" "$EDITOR/package-lock.json" && "$SYSTEM_PYTHON" -VV && echo "$ROOT"; } | sha256sum
}

make_environment() {
    local wanted
    wanted=$(fingerprint)
    if [[ -e $STAMP && $(<"$STAMP") == "$wanted" ]]; then
        touch "$STAMP"
        return
    fi
    echo "setup: preparing $VENV"
    "$SYSTEM_PYTHON" -m venv --clear --system-site-packages "$VENV"
    "$VENV/bin/python" -m pip install --quiet --editable "$ROOT[dev]"
    "$VENV/bin/python" -c 'import bcc' || fail "python3-bpfcc is installed but cannot be imported"
    mkdir "$VENV/editor"
    cp "$EDITOR"/package*.json "$VENV/editor"
    npm ci --prefix "$VENV/editor" --silent --no-audit --no-fund --ignore-scripts
    echo "$wanted" >"$STAMP"
}

[[ $EUID -eq 0 ]] || fail "needs root"
[[ -e /etc/debian_version ]] || fail "knows Debian only"
install_packages
mount_file_systems
make_environment
