CREATE OR REPLACE FUNCTION heap.lifecycle(statement text)
RETURNS TABLE (
    bucket timestamptz,
    status text,
    users bigint,
    group_key text
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$ BEGIN RETURN QUERY EXECUTE heap._analysis('lifecycle', statement); END $$;
COMMENT ON FUNCTION heap.lifecycle(text) IS
'A lifecycle statement, its first word optional: SELECT * FROM heap.lifecycle(''of any by week'')';
