#!/usr/bin/env bash
# Runs inside the virtual machine, as root, at every `vagrant provision`.
set -euo pipefail
cd /opt/bulkhead-src

tools/setup.sh
make --no-print-directory test
