"""`python -m llmsched.api`: the server. Nothing that is imported is garbage, so nobody looks for any meanwhile."""

import gc
import sys

gc.disable()

from llmsched.api.server import command  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    sys.exit(command())
