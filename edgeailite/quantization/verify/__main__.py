"""``python -m edgeailite.quantization.verify``."""

import sys

from edgeailite.quantization.verify.command import main

sys.exit(main())
