"""What runs inside PostgreSQL: `answer` turns a request of the SQL functions into SQL, or into an error to raise.

Nothing here changes the database. It reads the catalog through `plpy`, compiles, and hands commands back.
"""

from heap_extension.server import sqlglot_alone  # noqa: F401

# isort: split
from heap_compiler.parse import parser
from heap_extension.server.answer import answer

__all__ = ["answer", "load"]


def load() -> None:
    """Loads what every request needs beyond the modules: the parser."""
    parser()
