CREATE OR REPLACE FUNCTION heap.stickiness(statement text)
RETURNS TABLE (
    intervals int,
    users bigint,
    group_key text
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$ BEGIN RETURN QUERY EXECUTE heap._analysis('stickiness', statement); END $$;
COMMENT ON FUNCTION heap.stickiness(text) IS
'A stickiness statement, its first word optional: SELECT * FROM heap.stickiness(''of "Purchase" by week'')';
