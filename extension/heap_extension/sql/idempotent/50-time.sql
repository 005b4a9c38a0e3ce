CREATE OR REPLACE FUNCTION heap.time(statement text)
RETURNS TABLE (
    group_key text,
    low interval,
    high interval,
    users bigint,
    share numeric,
    converted bigint,
    average_time interval,
    median_time interval,
    p75_time interval,
    p90_time interval,
    p95_time interval,
    p99_time interval
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$ BEGIN RETURN QUERY EXECUTE heap._analysis('time', statement); END $$;
COMMENT ON FUNCTION heap.time(text) IS
'A time statement, its first word optional: SELECT * FROM heap.time(''from "Signed up" to "Purchase" within 7 days'')';
