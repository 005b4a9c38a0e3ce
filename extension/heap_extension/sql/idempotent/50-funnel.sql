CREATE OR REPLACE FUNCTION heap._later_end(last_end bigint, began bigint, ended bigint)
RETURNS bigint
LANGUAGE sql
IMMUTABLE
PARALLEL SAFE
RETURN CASE WHEN began > last_end THEN ended ELSE last_end END;
COMMENT ON FUNCTION heap._later_end(bigint, bigint, bigint) IS
'The end of the chain, if it begins after the last one taken ended, else that end';

CREATE OR REPLACE AGGREGATE heap._last_taken (began bigint, ended bigint) (
    sfunc = heap._later_end,
    stype = bigint,
    initcond = '0',
    parallel = safe
);
COMMENT ON AGGREGATE heap._last_taken(bigint, bigint) IS
'Over chains in the order of their ends: where the last one ends that is taken when none may overlap';

CREATE OR REPLACE FUNCTION heap.funnel(statement text)
RETURNS TABLE (
    group_key text,
    step int,
    event text,
    users bigint,
    conversion numeric,
    step_conversion numeric,
    median_time interval,
    average_time interval,
    bucket timestamptz,
    immature bigint
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
    average_time interval,
    bucket timestamptz,
    immature bigint
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
