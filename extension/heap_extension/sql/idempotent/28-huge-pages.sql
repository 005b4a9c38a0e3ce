-- Of the environment of a server process SQL shows nothing, and /proc not what it was started with. A line of PL/Python,
-- for superusers alone.
CREATE OR REPLACE FUNCTION heap._asks_for_huge_pages()
RETURNS boolean
LANGUAGE plpython3u
STABLE
SET search_path = pg_catalog, pg_temp
AS $python$
import os, re
return re.search(r"glibc\.malloc\.hugetlb=[12]", os.environ.get("GLIBC_TUNABLES", "")) is not None
$python$;
COMMENT ON FUNCTION heap._asks_for_huge_pages() IS
'Whether the server processes of this node ask for huge pages for what they allocate, for heap doctor';
