"""`python -m workloads.search`, inside a workload of `kind: tune`."""

from __future__ import annotations

import sys

from llmsched.errors import LlmschedError
from llmsched.runtime import current
from llmsched.runtime.failures import NO_USE
from workloads.search.search import Search, SearchFailed


def main() -> None:
    where = current()
    try:
        Search(where.spec["tune"]).run()
    except (SearchFailed, LlmschedError) as error:
        print(error, flush=True)
        sys.exit(NO_USE)


if __name__ == "__main__":
    main()
