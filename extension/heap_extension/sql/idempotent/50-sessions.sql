CREATE OR REPLACE FUNCTION heap.sessions(statement text)
RETURNS TABLE (
    bucket timestamptz,
    group_key text,
    sessions bigint,
    users bigint,
    events_per_session numeric,
    average_duration interval,
    median_duration interval,
    bounce_rate numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$ BEGIN RETURN QUERY EXECUTE heap._analysis('sessions', statement); END $$;
COMMENT ON FUNCTION heap.sessions(text) IS
'A sessions statement, its first word optional: SELECT * FROM heap.sessions(''by day group by landing_page'')';
