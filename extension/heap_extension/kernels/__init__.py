"""What runs beside the data: on each shard, numpy computes over arrays read from the indexes.

Nothing of the compiler is imported here, so that a worker's connection has only numpy to load.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # else numpy would start threads inside the server's process
