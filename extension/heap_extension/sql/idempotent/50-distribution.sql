CREATE OR REPLACE FUNCTION heap.distribution(statement text)
RETURNS TABLE (
    group_key text,
    low numeric,
    high numeric,
    users bigint
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$ BEGIN RETURN QUERY EXECUTE heap._analysis('distribution', statement); END $$;
COMMENT ON FUNCTION heap.distribution(text) IS
'A distribution statement, its first word optional: SELECT * FROM heap.distribution(''of count of "Purchase" per user'')';
