CREATE OR REPLACE FUNCTION heap.paths(statement text)
RETURNS TABLE (
    step int,
    source text,
    target text,
    users bigint,
    median_time interval,
    paths bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$ BEGIN RETURN QUERY EXECUTE heap._analysis('paths', statement); END $$;
COMMENT ON FUNCTION heap.paths(text) IS
'A paths statement, its first word optional: SELECT * FROM heap.paths(''of pageview by path from ''''/'''''')';
