"""Print the name of a device as a folder name: "NVIDIA H100 80GB HBM3" becomes nvidia-h100-80gb-hbm3."""

from __future__ import annotations

import re
import sys

from entropatch.measure import environment

sys.stdout.write(re.sub(r"[^a-z0-9]+", "-", str(environment(sys.argv[1])["hardware"]).lower()).strip("-") + "\n")
