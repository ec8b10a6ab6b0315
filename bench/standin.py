"""The agent without its command line, for a checkout in which that does not exist yet: `standin.py SETTINGS_FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

from bulkhead import config
from bulkhead.daemon.run import run

run(config.load(Path(sys.argv[1])))
