CREATE OR REPLACE FUNCTION heap.correlate(statement text)
RETURNS TABLE (
    factor text,
    value text,
    converted bigint,
    not_converted bigint,
    conversion numeric,
    lift numeric,
    odds_ratio numeric,
    p_value numeric,
    note text
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$ BEGIN RETURN QUERY EXECUTE heap._analysis('correlate', statement); END $$;
COMMENT ON FUNCTION heap.correlate(text) IS
'A correlate statement, its first word optional: SELECT * FROM heap.correlate(''"A" -> "B" with country'')';
