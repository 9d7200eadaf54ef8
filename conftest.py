"""What pytest is not to collect: modules of which a part is not installed."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("torch") else ["lucid_gpu/torch"]
