CREATE OR REPLACE FUNCTION heap.users(statement text)
RETURNS TABLE (
    user_id bigint,
    identity text,
    step int,
    times timestamptz [],
    event_ids bigint []
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET standard_conforming_strings = on
SET jit = off
AS $$ BEGIN RETURN QUERY EXECUTE heap._analysis('users', statement); END $$;
COMMENT ON FUNCTION heap.users(text) IS
'A users statement, its first word optional: SELECT * FROM heap.users(''who did "Purchase" at least 2 times'')';
