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

CREATE OR REPLACE FUNCTION heap._index_of(relation text, query text)
RETURNS oid
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_sort = off
SET max_parallel_workers_per_gather = 0
AS $$
DECLARE
    plan json;
    found oid;
BEGIN
    EXECUTE 'EXPLAIN (FORMAT JSON, COSTS OFF) ' || query INTO plan;
    plan := plan -> 0 -> 'Plan';
    -- Without a filter its condition is that of the query; without a sort its order, too.
    IF plan ->> 'Node Type' = 'Index Only Scan' AND plan ->> 'Filter' IS NULL AND plan ->> 'Index Cond' IS NULL THEN
        SELECT i.indexrelid INTO found FROM pg_index AS i
        WHERE i.indexrelid = to_regclass(format('%I.%I', (parse_ident(relation))[1], plan ->> 'Index Name'))
            AND i.indrelid = to_regclass(relation) AND i.indoption[0] = 0 AND i.indoption[1] = 0 AND i.indoption[2] = 0
            AND ARRAY['user_id', 'time', 'event_id'] = ARRAY(
                SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k (attribute, at)
                INNER JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attribute
                WHERE k.at <= 3 ORDER BY k.at
            );
    END IF;
    RETURN found;
END
$$;
COMMENT ON FUNCTION heap._index_of(text, text) IS
'The index whose entries, in their order, are the rows that a query of one table asks for by user_id, time and event_id; null when there is none';
