-- Pages of indexes, which kernels read as they are: heap_extension.kernels.index_pages says how that gives what a scan gives.

CREATE OR REPLACE FUNCTION heap._pages(relation text, fork text, pages bigint[])
RETURNS SETOF bytea
LANGUAGE plpgsql
STABLE
STRICT
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET "citus.override_table_visibility" = off
AS $$
DECLARE
    asked oid := to_regclass(relation);
    events oid := CASE WHEN fork = 'vm' THEN asked ELSE (SELECT i.indrelid FROM pg_index AS i WHERE i.indexrelid = asked) END;
BEGIN
    -- Superusers' sessions need this not, and their sessions also run what others own: index expressions in ANALYZE.
    IF fork IN ('main', 'vm') AND has_table_privilege(session_user, events, 'SELECT')
        AND NOT (SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = session_user)
        AND NOT (SELECT c.relrowsecurity FROM pg_class AS c WHERE c.oid = events)
    THEN
        RETURN QUERY SELECT heap._raw_page(relation, fork, p.page) FROM unnest(pages) AS p (page);
    END IF;
END
$$;
COMMENT ON FUNCTION heap._pages(text, text, bigint[]) IS
'Pages of an index (main), or of the visibility map of a table (vm), in this order; none where the session may not read the table, or not
all of its rows';
