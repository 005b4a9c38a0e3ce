CREATE OR REPLACE FUNCTION heap._has_citus()
RETURNS boolean
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') $$;
COMMENT ON FUNCTION heap._has_citus() IS 'Whether this database is distributed';

CREATE OR REPLACE FUNCTION heap._maintainer(trusted boolean DEFAULT TRUE)
RETURNS int
LANGUAGE sql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
SELECT l.pid
FROM pg_locks AS l
INNER JOIN pg_stat_activity AS a ON a.pid = l.pid
INNER JOIN pg_roles AS r ON r.oid = a.usesysid
WHERE l.locktype = 'advisory'
    AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    AND (l.classid::bigint << 32) | l.objid::bigint = hashtextextended('heap maintain', 0)
    AND l.objsubid = 1
    AND l.granted
    AND r.rolsuper = trusted
$$;
COMMENT ON FUNCTION heap._maintainer(boolean) IS
'The process of the heap maintain that leads; null while none runs. Or (false) one that holds its lock and is none: not a superuser''s';

CREATE OR REPLACE FUNCTION heap._placements(app text)
RETURNS TABLE (
    node text,
    partition text,
    shard bigint,
    relation text
)
LANGUAGE plpgsql
STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY SELECT NULL::text, c.relname::text, NULL::bigint, c.relname::text
    FROM pg_inherits AS h
    INNER JOIN pg_class AS c ON c.oid = h.inhrelid
    WHERE h.inhparent = to_regclass(quote_ident(app) || '.events');
    IF heap._has_citus() THEN
        RETURN QUERY EXECUTE $query$
            SELECT n.nodename || ':' || n.nodeport, c.relname::text, s.shardid, c.relname || '_' || s.shardid
            FROM pg_inherits AS h
            INNER JOIN pg_class AS c ON c.oid = h.inhrelid
            INNER JOIN pg_dist_shard AS s ON s.logicalrelid = c.oid
            INNER JOIN pg_dist_placement AS p ON p.shardid = s.shardid
            INNER JOIN pg_dist_node AS n ON n.groupid = p.groupid AND n.noderole = 'primary'
            WHERE h.inhparent = to_regclass(quote_ident($1) || '.events')
        $query$ USING app;
    END IF;
END
$$;
COMMENT ON FUNCTION heap._placements(text) IS
'Where an app''s partitions are: the tables here (no node, no shard), and with Citus each shard on each of its nodes';

CREATE OR REPLACE FUNCTION heap._on_nodes(command text)
RETURNS TABLE (
    node text,
    answer json
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    node := NULL;
    EXECUTE command INTO answer;
    RETURN NEXT;
    IF heap._has_citus() THEN
        RETURN QUERY EXECUTE $query$
            SELECT n.nodename || ':' || n.nodeport, CASE WHEN r.success THEN r.result::json END
            FROM run_command_on_all_nodes($1, parallel => TRUE, give_warning_for_connection_errors => TRUE) AS r
            INNER JOIN pg_dist_node AS n ON n.nodeid = r.nodeid AND n.noderole = 'primary'
        $query$ USING command;
    END IF;
END
$$;
COMMENT ON FUNCTION heap._on_nodes(text) IS
'The JSON a query answers here (no node) and with Citus on every node; null for a node that does not answer';

CREATE OR REPLACE FUNCTION heap._node_indexes(app text)
RETURNS TABLE (
    node text,
    answers boolean,
    relation text,
    index_name text,
    is_valid boolean,
    bytes bigint,
    entries bigint,
    scans bigint,
    phase text,
    done double precision,
    building_since timestamptz
)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
SELECT
    n.node, n.answer IS NOT NULL AS answers, i.relation, i.index_name, i.is_valid, i.bytes, i.entries, i.scans, i.phase, i.done,
    i.building_since
FROM heap._on_nodes(format($command$
    SELECT coalesce(json_agg(json_build_object(
        'relation', t.relname, 'index_name', c.relname, 'is_valid', x.indisvalid AND x.indisready,
        'bytes', c.relpages::bigint * current_setting('block_size')::int, 'entries', greatest(c.reltuples, 0)::bigint,
        'scans', pg_stat_get_numscans(c.oid), 'phase', p.phase,
        'done', p.blocks_done::float8 / nullif(p.blocks_total, 0), 'building_since', a.query_start
    )), '[]')
    FROM pg_namespace AS s
    JOIN pg_class AS t ON t.relnamespace = s.oid AND t.relkind = 'r' AND t.relname LIKE 'events\_%%'
    JOIN pg_index AS x ON x.indrelid = t.oid AND x.indpred IS NOT NULL
    JOIN pg_class AS c ON c.oid = x.indexrelid
    LEFT JOIN pg_stat_progress_create_index AS p ON p.index_relid = c.oid AND p.datname = current_database()
    LEFT JOIN pg_stat_activity AS a ON a.pid = p.pid
    WHERE s.nspname = %L
$command$, app)) AS n
LEFT JOIN LATERAL json_to_recordset(n.answer) AS i (
    relation text, index_name text, is_valid boolean, bytes bigint, entries bigint, scans bigint, phase text,
    done double precision, building_since timestamptz
) ON TRUE
$$;
COMMENT ON FUNCTION heap._node_indexes(text) IS
'The partial indexes on an app''s partitions, as the nodes report them in one call; a node without any, or without an answer, is one row';

CREATE OR REPLACE FUNCTION heap._matching_events(app text, suffixes text[])
RETURNS TABLE (
    index_suffix text,
    entries bigint
)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
SELECT f.index_suffix, CASE WHEN bool_and(f.counted) THEN sum(f.entries)::bigint END AS entries
FROM heap._on_nodes(format($command$
    SELECT coalesce(json_agg(found), '[]') FROM (
        SELECT
            s.index_suffix, sum(greatest(c.reltuples, 0))::bigint AS entries,
            bool_and(t.reltuples >= 0 OR pg_stat_get_live_tuples(t.oid) = 0) AS counted
        FROM unnest(%1$L::text[]) AS s (index_suffix)
        CROSS JOIN pg_class AS t
        JOIN pg_class AS c
            ON c.relnamespace = t.relnamespace
            AND c.relname = regexp_replace(t.relname, '^(events_(?:default|\d{4}_\d{2}))(_\d+)?$', '\1_' || s.index_suffix || '\2')::name
        WHERE t.relnamespace = to_regnamespace(quote_ident(%2$L)) AND t.relkind = 'r' AND t.relname LIKE 'events\_%%'
            AND (NOT %3$L::boolean OR t.relname ~ '^events_(default|\d{4}_\d{2})_\d+$')
        GROUP BY s.index_suffix
    ) AS found
$command$, suffixes, app, heap._shard_count(app) > 1)) AS n
CROSS JOIN json_to_recordset(n.answer) AS f (index_suffix text, entries bigint, counted boolean)
GROUP BY f.index_suffix
$$;
COMMENT ON FUNCTION heap._matching_events(text, text[]) IS
'Entries of the indexes of events in all shards, as last counted; null while a table with events was never counted';

CREATE OR REPLACE FUNCTION heap.index_health(for_app text DEFAULT NULL)
RETURNS TABLE (
    app text,
    event text,
    partition text,
    node text,
    shard bigint,
    index_name text,
    state text,
    matching_events bigint,
    bytes bigint,
    bloat double precision,
    scans bigint,
    last_used timestamptz,
    phase text,
    done double precision,
    building_since timestamptz
)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    asked text;
BEGIN
    FOR asked IN SELECT a.name FROM heap.app AS a WHERE for_app IS NULL OR a.name = for_app ORDER BY 1 LOOP
        RETURN QUERY
        WITH places AS MATERIALIZED (
            SELECT * FROM heap._placements(asked)
        ),
        found AS MATERIALIZED (
            SELECT * FROM heap._node_indexes(asked)
        ),
        wanted AS MATERIALIZED (
            SELECT
                d.name, d.last_used, p.node, p.partition, p.shard, p.relation,
                p.partition || '_' || d.index_suffix || coalesce('_' || p.shard, '') AS index_name
            FROM heap.event_definition AS d CROSS JOIN places AS p
            WHERE d.app = asked AND d.index_suffix IS NOT NULL AND NOT d.dormant
        ),
        present AS MATERIALIZED (
            SELECT f.*, p.partition, p.shard
            FROM found AS f INNER JOIN places AS p ON p.relation = f.relation AND p.node IS NOT DISTINCT FROM f.node
        )
        SELECT
            asked, w.name, coalesce(w.partition, i.partition), coalesce(w.node, i.node), coalesce(w.shard, i.shard),
            coalesce(w.index_name, i.index_name),
            CASE
                WHEN w.name IS NULL THEN 'orphan'
                WHEN i.is_valid THEN 'valid'
                WHEN i.phase IS NOT NULL THEN 'building'
                WHEN i.index_name IS NOT NULL THEN 'invalid'
                WHEN w.node IN (SELECT f.node FROM found AS f WHERE NOT f.answers) THEN 'unreachable'
                ELSE 'missing'
            END,
            i.entries, i.bytes, i.bytes::float8 / (i.entries * 40 + 4 * current_setting('block_size')::int), i.scans, w.last_used,
            i.phase, i.done, i.building_since
        FROM wanted AS w
        FULL JOIN present AS i
            ON i.relation = w.relation AND i.index_name = w.index_name AND coalesce(i.node, '') = coalesce(w.node, '')
        WHERE w.name IS NOT NULL OR i.index_name ~ ('^' || i.partition || '_.*_[0-9a-f]{8}(_[0-9]+)?(_cc(new|old)[0-9]*)?$');
    END LOOP;
END
$$;
COMMENT ON FUNCTION heap.index_health(text) IS
$$Every index of every event on every placement: state (valid, building, invalid, missing, unreachable, or orphan: no definition's), size
as of the last VACUUM, ANALYZE or build, bloat (bytes by those its entries need), use. Without a node: the tables Citus copies to moved shards$$;

CREATE OR REPLACE FUNCTION heap.partition_health(app text)
RETURNS TABLE (
    partition text,
    node text,
    shard bigint,
    bytes bigint,
    events bigint,
    visible double precision,
    changed bigint,
    last_vacuum timestamptz
)
LANGUAGE sql
SET search_path = pg_catalog, pg_temp
AS $$
SELECT p.partition, p.node, p.shard, t.bytes, t.events, t.visible, t.changed, t.last_vacuum
FROM heap._placements(app) AS p
INNER JOIN heap._on_nodes(format($command$
    SELECT coalesce(json_agg(json_build_object(
        'relation', c.relname, 'bytes', pg_relation_size(c.oid), 'events', pg_stat_get_live_tuples(c.oid),
        'visible', c.relallvisible / (pg_relation_size(c.oid) / current_setting('block_size')::float8),
        'changed', CASE
            WHEN c.relpages = 0 THEN 1  -- not vacuumed yet
            ELSE pg_stat_get_ins_since_vacuum(c.oid) + pg_stat_get_dead_tuples(c.oid) END,
        'last_vacuum', greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid))
    )), '[]')
    FROM pg_namespace AS s
    JOIN pg_class AS c ON c.relnamespace = s.oid AND c.relkind = 'r' AND c.relname LIKE 'events\_%%'
    WHERE s.nspname = %L AND pg_relation_size(c.oid) > 0
$command$, app)) AS n ON n.node IS NOT DISTINCT FROM p.node
INNER JOIN LATERAL json_to_recordset(n.answer) AS t (
    relation text, bytes bigint, events bigint, visible double precision, changed bigint, last_vacuum timestamptz
) ON t.relation = p.relation
$$;
COMMENT ON FUNCTION heap.partition_health(text) IS
'The partitions with events, per placement: size, share of pages that index-only scans need not visit, rows changed since the last VACUUM';

CREATE OR REPLACE VIEW heap.index_builds WITH (security_invoker = TRUE) AS
SELECT
    app,
    event,
    partition,
    count(*) FILTER (WHERE state = 'valid') AS shards_done,
    count(*) AS shards,
    max(phase) AS phase,
    max(done) AS phase_done,
    max((clock_timestamp() - building_since) * (1 / nullif(done, 0) - 1)) AS remaining,
    string_agg(DISTINCT state, ', ') FILTER (WHERE state <> 'valid') AS waiting_for
FROM (
    SELECT
        *,
        bool_or(node IS NOT NULL) OVER (PARTITION BY app, partition) AS is_distributed
    FROM heap.index_health()
) AS h
WHERE event IS NOT NULL AND (node IS NOT NULL OR NOT is_distributed)
GROUP BY app, event, partition
HAVING bool_or(state <> 'valid');
COMMENT ON VIEW heap.index_builds IS
'Indexes that are not there yet: shards done and in all; of a running build the phase, the share of it that is done and the time the rest will take';
GRANT SELECT ON heap.index_builds TO PUBLIC;
