CREATE OR REPLACE FUNCTION heap.define_event(name text, definition text)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT heap._run('define_event', ARRAY[name, definition]) $$;
COMMENT ON FUNCTION heap.define_event(text, text) IS
'Defines an event, or redefines it, over all history, and builds its partial indexes in this transaction';

CREATE OR REPLACE FUNCTION heap.drop_event(name text)
RETURNS void
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$ SELECT heap._run('drop_event', ARRAY[name]) $$;
COMMENT ON FUNCTION heap.drop_event(text) IS 'Drops a defined event and its indexes; the captured events stay';

CREATE OR REPLACE FUNCTION heap._index_size(index_of regclass, OUT tuples bigint, OUT bytes bigint)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    owner regclass := (SELECT indrelid FROM pg_index WHERE indexrelid = index_of);
    is_distributed boolean := false;
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        EXECUTE 'SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = $1)' INTO is_distributed USING owner;
    END IF;
    IF NOT is_distributed THEN
        SELECT greatest(reltuples, 0)::bigint, pg_relation_size(oid) INTO tuples, bytes FROM pg_class WHERE oid = index_of;
        RETURN;
    END IF;
    -- The shards' indexes have their predicate in common with the one here, and nothing else surely: long names are cut.
    EXECUTE $query$
        SELECT sum(split_part(result, ' ', 1)::bigint), sum(split_part(result, ' ', 2)::bigint)
        FROM run_command_on_shards($1, $command$
            SELECT sum(greatest(c.reltuples, 0))::bigint || ' ' || sum(pg_relation_size(c.oid))
            FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
            WHERE i.indrelid = '%s'::regclass AND md5(pg_get_expr(i.indpred, i.indrelid)) = $command$
            || quote_literal($2))
        WHERE success
    $query$ INTO tuples, bytes
    USING owner, md5((SELECT pg_get_expr(indpred, indrelid) FROM pg_index WHERE indexrelid = index_of));
END
$$;
COMMENT ON FUNCTION heap._index_size(regclass) IS
'Entries (as of the last VACUUM, ANALYZE or build) and bytes of an index; of a distributed one, over its shards';

CREATE OR REPLACE VIEW heap.events WITH (security_invoker = TRUE) AS
SELECT
    d.app,
    d.name,
    d.definition,
    CASE
        WHEN d.predicate IS NULL THEN 'none'
        WHEN i.ready = p.partitions THEN 'ready'
        WHEN i.ready > 0 THEN 'partial'
        ELSE 'missing'
    END AS index_state,
    i.matching_events,
    i.bytes
FROM heap.event_definition AS d
CROSS JOIN LATERAL (
    SELECT count(*) AS partitions
    FROM pg_catalog.pg_inherits
    WHERE inhparent = pg_catalog.to_regclass(pg_catalog.quote_ident(d.app) || '.events')
) AS p
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE x.indisvalid) AS ready,
        sum(s.tuples)::bigint AS matching_events,
        sum(s.bytes)::bigint AS bytes
    FROM pg_catalog.pg_inherits AS h
    INNER JOIN pg_catalog.pg_class AS t ON t.oid = h.inhrelid
    INNER JOIN pg_catalog.pg_index AS x ON x.indrelid = t.oid
    INNER JOIN pg_catalog.pg_class AS c ON c.oid = x.indexrelid AND c.relname = t.relname || '_' || d.index_suffix
    CROSS JOIN LATERAL heap._index_size(c.oid) AS s
    WHERE h.inhparent = pg_catalog.to_regclass(pg_catalog.quote_ident(d.app) || '.events')
) AS i;
COMMENT ON VIEW heap.events IS
'Defined events: definition, state of the indexes (ready, partial, missing), matching events as of the last VACUUM, ANALYZE or build, and bytes of the indexes';
GRANT SELECT ON heap.events TO PUBLIC;
