"""``python -m lucid_gpu`` is the ``lucid-gpu`` command."""

import sys

from lucid_gpu.cli import main

sys.exit(main())
