CREATE OR REPLACE FUNCTION heap.effort(statement text)
RETURNS TABLE (
    group_key text,
    step int,
    event text,
    users bigint,
    median_events numeric,
    average_events numeric,
    median_time interval,
    average_time interval
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$ BEGIN RETURN QUERY EXECUTE heap._analysis('effort', statement); END $$;
COMMENT ON FUNCTION heap.effort(text) IS
'An effort statement, its first word optional: SELECT * FROM heap.effort(''"A" -> "B" within 7 days'')';
