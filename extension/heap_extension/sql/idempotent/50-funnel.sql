CREATE OR REPLACE FUNCTION heap.funnel(statement text)
RETURNS TABLE (
    group_key text,
    step int,
    event text,
    users bigint,
    conversion numeric,
    step_conversion numeric,
    median_time interval,
    average_time interval
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$ BEGIN RETURN QUERY EXECUTE heap._analysis('funnel', statement); END $$;
COMMENT ON FUNCTION heap.funnel(text) IS
'A funnel statement, its first word optional: SELECT * FROM heap.funnel(''"A" -> "B" within 7 days'')';

CREATE OR REPLACE FUNCTION heap.funnel(VARIADIC steps text[])
RETURNS TABLE (
    group_key text,
    step int,
    event text,
    users bigint,
    conversion numeric,
    step_conversion numeric,
    median_time interval,
    average_time interval
)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
SELECT * FROM heap.funnel((
    SELECT string_agg('"' || replace(coalesce(name, ''), '"', '""') || '"', ' -> ' ORDER BY position)
    FROM unnest(steps) WITH ORDINALITY AS step (name, position)
))
$$;
COMMENT ON FUNCTION heap.funnel(text[]) IS
'The funnel of these defined events over the last 30 days: SELECT * FROM heap.funnel(''Viewed pricing'', ''Purchase'')';
