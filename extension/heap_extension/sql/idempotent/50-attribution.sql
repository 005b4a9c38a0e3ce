CREATE OR REPLACE FUNCTION heap.attribution(statement text)
RETURNS TABLE (
    group_key text,
    conversions numeric,
    users bigint,
    share numeric,
    value numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$ BEGIN RETURN QUERY EXECUTE heap._analysis('attribution', statement); END $$;
COMMENT ON FUNCTION heap.attribution(text) IS
'An attribution statement, its first word optional: SELECT * FROM heap.attribution(''of "Purchase" to utm_source by first touch'')';
