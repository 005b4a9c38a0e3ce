CREATE OR REPLACE FUNCTION heap.trend(statement text)
RETURNS TABLE (
    bucket timestamptz,
    series text,
    group_key text,
    value numeric
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$ BEGIN RETURN QUERY EXECUTE heap._analysis('trend', statement); END $$;
COMMENT ON FUNCTION heap.trend(text) IS
'A trend statement, its first word optional: SELECT * FROM heap.trend(''count of "Purchase" by day'')';
