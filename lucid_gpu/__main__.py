"""``python -m lucid_gpu`` is the ``lucid-gpu`` command."""

import sys

from lucid_gpu.command.cli import main

sys.exit(main())
