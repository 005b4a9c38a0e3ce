CREATE OR REPLACE FUNCTION heap.retention(statement text)
RETURNS TABLE (
    cohort timestamptz,
    group_key text,
    size bigint,
    period int,
    users bigint,
    rate numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$ BEGIN RETURN QUERY EXECUTE heap._analysis('retention', statement); END $$;
COMMENT ON FUNCTION heap.retention(text) IS
'A retention statement, its first word optional: SELECT * FROM heap.retention(''from "Signed up" to any by week'')';
